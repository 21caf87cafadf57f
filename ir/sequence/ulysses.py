"""DeepSpeed-Ulysses (arXiv 2309.14509): ranks exchange their tokens for each other's heads, and back.

A rank then holds all tokens of its group for some query heads, and the key/value heads these read: any number of ranks
goes, as heads need not divide and a key/value head may be wanted by several ranks. Around what is left of the sequence
runs another method: none (`ulysses`), or a ring over the other ranks (`usp`, arXiv 2405.07719).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from fourfold.ir.comm import Comm, Shapes, all_to_all, with_own
from fourfold.ir.sequence.method import Block, Gradients, Job, Method, Saved, accumulation
from fourfold.ir.sequence.ring import RING
from fourfold.ir.sequence.tokens import Shard, joined, ordered
from fourfold.ir.sequence.whole import WHOLE


@dataclass(frozen=True, slots=True)
class Heads:
    """The query heads [start, stop) of one rank, the key/value heads [first, last) they read, and which reads which.

    `repeat`: for each query head the place of its key/value head in [first, last), None where each of these serves
    equally many neighbours, as kernels know it.
    """

    start: int
    stop: int
    first: int
    last: int
    repeat: tuple[int, ...] | None


@lru_cache
def split_heads(heads: int, kv_heads: int, n: int) -> tuple[Heads, ...]:
    """Query heads dealt to n ranks in order, sizes differing by one at most; a rank may have none."""
    group = heads // kv_heads
    found = []
    for start, stop in pairwise(heads * rank // n for rank in range(n + 1)):
        first, last = start // group, -(-stop // group) if stop > start else start // group
        reads = tuple(h // group - first for h in range(start, stop))
        each = (stop - start) // max(1, last - first)
        plain = reads == tuple(i // each for i in range(stop - start)) and each * (last - first) == stop - start
        found.append(Heads(start, stop, first, last, None if plain else reads))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Around:
    """How one group exchanges: this rank's place and peers, the tokens of each, and the method for what is left.

    index: the old place of each token that is stored anew, on the device; None where nothing moves.
    """

    comm: Comm
    outer: Comm
    shards: tuple[Shard, ...]
    inner: Job
    index: Tensor | None

    @property
    def tokens(self) -> list[int]:
        return [one.tokens for one in self.shards]


def around(comm: Comm, job: Job, device: torch.device) -> Around:
    """Neighbours of `job.ulysses` ranks exchange heads; ranks of one place in them share what is left."""
    u = job.ulysses
    first = comm.rank - comm.rank % u
    members = tuple(range(first, first + u))
    others = tuple(range(comm.rank % u, comm.size, u))
    shards = tuple(job.shards[r] for r in members)
    starts = range(0, comm.size, u)
    after = job.once(("ordered", u), lambda: [ordered(joined(job.shards[start : start + u])) for start in starts])
    held = tuple(one for one, _ in after)
    old = after[comm.rank // u][1]
    index = None if old is None else job.once(("index", comm.rank // u, device), lambda: _on(old, device))
    return Around(comm.among(members), comm.among(others), shards, replace(job, shards=held, ulysses=1), index)


def forward(comm: Comm, block: Block, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, job: Job) -> tuple[Tensor, Saved]:
    """Every rank sends (u - 1) / u of its queries and outputs, and the key/value heads that others read."""
    place, inner = around(comm, job, q_THD.device), _inner(comm, job)
    split = split_heads(q_THD.shape[1], k_TGD.shape[1], job.ulysses)
    mine, own, read = split[place.comm.rank], [(h.start, h.stop) for h in split], [(h.first, h.last) for h in split]
    q_SHD, *kv = _to_heads(place, [(q_THD, own), (k_TGD, read), (v_TGD, read)])
    k_SGD, v_SGD = (_repeated(x, mine) for x in kv)
    # A rank without heads has nothing to work on, nor have those it would share it with.
    out_SHD: Tensor = q_SHD
    saved: Saved = (q_SHD, k_SGD, v_SGD)
    if mine.stop > mine.start:
        out_SHD, saved = inner.forward(place.outer, block, q_SHD, k_SGD, v_SGD, place.inner)
    (out_THD,) = _to_tokens(place, [(out_SHD, [h.stop - h.start for h in split])])
    return torch.cat(out_THD, 1), (k_TGD.new_empty((0, k_TGD.shape[1])), *saved)


def backward(comm: Comm, block: Block, grad_THD: Tensor, saved: Saved, job: Job) -> Gradients:
    """The same the other way: gradients of outputs go out, those of queries, keys and values come home."""
    place, inner = around(comm, job, grad_THD.device), _inner(comm, job)
    kv_heads = saved[0].shape[1]
    split = split_heads(grad_THD.shape[1], kv_heads, job.ulysses)
    mine, heads, read = split[place.comm.rank], [h.stop - h.start for h in split], [h.last - h.first for h in split]
    (grad_SHD,) = _to_heads(place, [(grad_THD, [(h.start, h.stop) for h in split])])
    dq_SHD, dk_SGD, dv_SGD = saved[1:4]
    if mine.stop > mine.start:
        dq_SHD, dk_SGD, dv_SGD = inner.backward(place.outer, block, grad_SHD, saved[1:], place.inner)
    dk_SGD, dv_SGD = (_folded(x, mine) for x in (dk_SGD, dv_SGD))
    dq, dk, dv = _to_tokens(place, [(dq_SHD, heads), (dk_SGD, read), (dv_SGD, read)])
    return torch.cat(dq, 1), _summed(dk, split, kv_heads), _summed(dv, split, kv_heads)


def _inner(comm: Comm, job: Job) -> Method:
    return WHOLE if comm.size == job.ulysses else RING


def _to_heads(place: Around, wanted: Sequence[tuple[Tensor, Sequence[tuple[int, int]]]]) -> list[Tensor]:
    """Of each tensor [T, .., D], all tokens of the group, ordered, for this rank's heads: [S, heads, D].

    With each stand the heads [start, stop) of every rank.
    """
    rank, found, tensors = place.comm.rank, [], []
    for x_THD, spans in wanted:
        parts = [x_THD[:, start:stop].contiguous() for start, stop in spans]
        tensors.append((parts, [(tokens, *parts[rank].shape[1:]) for tokens in place.tokens]))
    for arrived in _travelled(place, tensors):
        whole = torch.cat(arrived, 0)
        found.append(whole if place.index is None else whole.index_select(0, place.index))
    return found


def _to_tokens(place: Around, wanted: Sequence[tuple[Tensor, Sequence[int]]]) -> list[list[Tensor]]:
    """Of each tensor [S, .., D], this rank's tokens, for the heads of every rank: a tensor [T, heads, D] for each rank.

    With each stand how many heads every rank has.
    """
    mine, tensors = place.tokens[place.comm.rank], []
    for x_SHD, heads in wanted:
        stored = x_SHD if place.index is None else torch.empty_like(x_SHD).index_copy_(0, place.index, x_SHD)
        parts = list(stored.split(place.tokens, 0))  # type: ignore[no-untyped-call]
        tensors.append((parts, [(mine, count, x_SHD.shape[2]) for count in heads]))
    return _travelled(place, tensors)


def _travelled(place: Around, tensors: Sequence[tuple[Sequence[Tensor], Shapes]]) -> list[list[Tensor]]:
    """Of each tensor, what every rank has for this one, its own among them; all travel at once."""
    comm = place.comm
    arrived, each = all_to_all(comm, tensors).wait(), comm.size - 1
    return [
        with_own(comm, arrived[i * each : (i + 1) * each], parts[comm.rank]) for i, (parts, _) in enumerate(tensors)
    ]


def _repeated(x_SGD: Tensor, mine: Heads) -> Tensor:
    """A key/value head for each query head, where they do not come in equal groups."""
    return x_SGD if mine.repeat is None else x_SGD.index_select(1, _on(mine.repeat, x_SGD.device))


def _folded(dx_SGD: Tensor, mine: Heads) -> Tensor:
    """The gradients of key/value heads that `_repeated` copied, added up."""
    if mine.repeat is None:
        return dx_SGD
    kind = accumulation(dx_SGD.dtype)
    whole = torch.zeros((dx_SGD.shape[0], mine.last - mine.first, dx_SGD.shape[2]), dtype=kind, device=dx_SGD.device)
    return whole.index_add_(1, _on(mine.repeat, dx_SGD.device), dx_SGD.to(kind)).to(dx_SGD.dtype)


def _summed(found: Sequence[Tensor], split: Sequence[Heads], kv_heads: int) -> Tensor:
    """Gradients of this rank's keys, from those of every rank's heads: heads that several read are added up."""
    if all(before.last == after.first for before, after in pairwise(split)):
        return torch.cat(list(found), 1)
    kind = accumulation(found[0].dtype)
    whole = torch.zeros((found[0].shape[0], kv_heads, found[0].shape[2]), dtype=kind, device=found[0].device)
    for heads, part in zip(split, found, strict=True):
        whole[:, heads.first : heads.last] += part
    return whole.to(found[0].dtype)


def _on(index: tuple[int, ...], device: torch.device) -> Tensor:
    """On the device, for which the host does not wait."""
    found = torch.tensor(index)
    return found.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else found.to(device)


ULYSSES = Method("ulysses", forward, backward, plain=False, merges=False)
USP = Method("usp", forward, backward, plain=False, merges=False)
