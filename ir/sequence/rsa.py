"""Ring self-attention (RSA, arXiv 2105.13120): keys go round, then values; weights of whole rows are written out.

The ancestor of ring attention, for what needs the weights themselves. A rank keeps those of its queries on all keys
[G, R, T, S], hidden pairs included. Backward sends values, then keys, round again and finds shares of all gradients of
keys and values, which go to their owner: the original adds them up on every rank, for twice the bytes.

Letters: R query heads a key/value head, N keys of one rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fourfold.ir.comm import Comm, Handle, all_to_all, shift
from fourfold.ir.sequence.method import Block, Gradients, Job, Method, Saved, accumulation, zeros
from fourfold.ir.sequence.rectangles import Seen


def forward(comm: Comm, block: Block, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, job: Job) -> tuple[Tensor, Saved]:
    """Every rank sends 2 x its keys n - 1 times. Weights, in the accumulation dtype, are kept in that of q."""
    groups, tokens = k_TGD.shape[1], [one.tokens for one in job.shards]
    q_GRTD = _grouped(q_THD, groups)
    slab_GRTS = q_GRTD.new_empty((*q_GRTD.shape[:3], sum(tokens)))
    columns = slab_GRTS.split(tokens, -1)  # type: ignore[no-untyped-call]
    for source, k_NGD in _round(comm, k_TGD, job):
        scores_GRTN = q_GRTD @ _keys(k_NGD).mT * job.softmax.scale
        hidden_TN = _hidden(q_THD, k_NGD, job.seen(comm.rank, source))
        columns[source].copy_(scores_GRTN.masked_fill_(hidden_TN, float("-inf")))
    weights_GRTS = slab_GRTS.softmax(-1).to(q_THD.dtype)
    out_THD = block.empty(q_THD).out
    columns = weights_GRTS.split(tokens, -1)  # type: ignore[no-untyped-call]
    for source, v_NGD in _round(comm, v_TGD, job):
        out_THD += _flat(_wide(columns[source]) @ _keys(v_NGD))
    return out_THD.to(q_THD.dtype), (q_THD, torch.stack((k_TGD, v_TGD)), weights_GRTS)


def backward(comm: Comm, block: Block, grad_THD: Tensor, saved: Saved, job: Job) -> Gradients:
    """The two rounds again; every rank sends each of the others 2 x that one's gradients in `job.travel`.

    Those of values are on their way while keys go round.
    """
    q_THD, kv_2TGD, weights_GRTS = saved
    groups, tokens = kv_2TGD.shape[2], [one.tokens for one in job.shards]
    q_GRTD, grad_GRTD = (_grouped(x, groups) for x in (q_THD, grad_THD))
    slab_GRTS = torch.empty_like(weights_GRTS, dtype=q_GRTD.dtype)
    columns = slab_GRTS.split(tokens, -1)  # type: ignore[no-untyped-call]
    for source, v_NGD in _round(comm, kv_2TGD[1], job):
        columns[source].copy_(grad_GRTD @ _keys(v_NGD).mT)
    dv = _shares(_wide(weights_GRTS), grad_GRTD, tokens)
    dv_home = _home(comm, dv, job)
    slab_GRTS -= (slab_GRTS * weights_GRTS).sum(-1, keepdim=True)
    slab_GRTS *= weights_GRTS
    slab_GRTS *= job.softmax.scale
    dq_THD = zeros(q_THD)
    for source, k_NGD in _round(comm, kv_2TGD[0], job):
        dq_THD += _flat(columns[source] @ _keys(k_NGD))
    dk = _shares(slab_GRTS, q_GRTD, tokens)
    dk_home = _home(comm, dk, job)
    found = (dq_THD, _summed(dk[comm.rank], dk_home), _summed(dv[comm.rank], dv_home))
    dq_THD, dk_TGD, dv_TGD = (x.to(q_THD.dtype) for x in found)
    return dq_THD, dk_TGD, dv_TGD


def _round(comm: Comm, own_TGD: Tensor, job: Job) -> Iterator[tuple[int, Tensor]]:
    """Every rank and what it holds; the next is under way while one is worked on."""
    current_NGD = own_TGD.contiguous()
    for step in range(comm.size):
        source = (comm.rank - step) % comm.size
        coming: Handle | None = None
        if step < comm.size - 1:
            before = job.shards[(source - 1) % comm.size].tokens
            coming = shift(comm, (current_NGD,), 1, ((before, *own_TGD.shape[1:]),))
        yield source, current_NGD
        if coming is not None:
            (current_NGD,) = coming.wait()


def _shares(weights_GRTS: Tensor, x_GRTD: Tensor, tokens: Sequence[int]) -> Sequence[Tensor]:
    """For every rank [N, G, D]: for its keys, the sum over this rank's rows, weighted."""
    whole_SGD = (weights_GRTS.mT @ x_GRTD).sum(1).transpose(0, 1).contiguous()
    return whole_SGD.split(tokens)  # type: ignore[no-untyped-call, no-any-return]


def _home(comm: Comm, shares: Sequence[Tensor], job: Job) -> Handle:
    """The shares of the others in this rank's gradients, on their way here, and theirs on their way to them."""
    travel = job.travel or shares[0].dtype
    own = tuple(shares[comm.rank].shape)
    return all_to_all(comm, [([x.to(travel) for x in shares], [own] * comm.size)], name="reduce_scatter")


def _summed(own_TGD: Tensor, coming: Handle) -> Tensor:
    for share_TGD in coming.wait():
        own_TGD += share_TGD
    return own_TGD


def _hidden(q_THD: Tensor, k_NGD: Tensor, seen: Seen) -> Tensor:
    """Which keys each query does not see."""
    hidden_TN = torch.ones((q_THD.shape[0], k_NGD.shape[0]), dtype=torch.bool, device=q_THD.device)
    for one in seen:
        hidden = hidden_TN[one.q_at : one.q_at + one.q_count, one.k_at : one.k_at + one.k_count]
        row, key = (torch.arange(count, device=q_THD.device) for count in (one.q_count, one.k_count))
        behind = key - row[:, None]
        shown = torch.ones_like(behind, dtype=torch.bool)
        if one.high is not None:
            shown &= behind <= one.high
        if one.low is not None:
            shown &= behind > one.low
        hidden &= ~shown
    return hidden_TN


def _grouped(x_THD: Tensor, groups: int) -> Tensor:
    """[G, R, T, D]: query head h sits with key/value head h // R."""
    tokens, heads, width = x_THD.shape
    return _wide(x_THD).reshape(tokens, groups, heads // groups, width).permute(1, 2, 0, 3)


def _keys(x_NGD: Tensor) -> Tensor:
    """[G, 1, N, D]."""
    return _wide(x_NGD).transpose(0, 1).unsqueeze(1)


def _flat(x_GRTD: Tensor) -> Tensor:
    """[T, H, D]."""
    return x_GRTD.flatten(0, 1).transpose(0, 1)


def _wide(x: Tensor) -> Tensor:
    return x.to(accumulation(x.dtype))


RSA = Method("rsa", forward, backward, merges=False)
