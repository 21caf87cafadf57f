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

from fourfold.ir.comm import Comm, all_to_all, with_own
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
    mine = split[place.comm.rank]
    q_SHD = _to_heads(place, q_THD, [(h.start, h.stop) for h in split])
    k_SGD, v_SGD = (_repeated(_to_heads(place, x, [(h.first, h.last) for h in split]), mine) for x in (k_TGD, v_TGD))
    # A rank without heads has nothing to work on, nor have those it would share it with.
    out_SHD: Tensor = q_SHD
    saved: Saved = (q_SHD, k_SGD, v_SGD)
    if mine.stop > mine.start:
        out_SHD, saved = inner.forward(place.outer, block, q_SHD, k_SGD, v_SGD, place.inner)
    out_THD = _to_tokens(place, out_SHD, [h.stop - h.start for h in split])
    return torch.cat(out_THD, 1), (k_TGD.new_empty((0, k_TGD.shape[1])), *saved)


def backward(comm: Comm, block: Block, grad_THD: Tensor, saved: Saved, job: Job) -> Gradients:
    """The same the other way: gradients of outputs go out, those of queries, keys and values come home."""
    place, inner = around(comm, job, grad_THD.device), _inner(comm, job)
    kv_heads = saved[0].shape[1]
    split = split_heads(grad_THD.shape[1], kv_heads, job.ulysses)
    mine = split[place.comm.rank]
    grad_SHD = _to_heads(place, grad_THD, [(h.start, h.stop) for h in split])
    dq_SHD, dk_SGD, dv_SGD = saved[1:4]
    if mine.stop > mine.start:
        dq_SHD, dk_SGD, dv_SGD = inner.backward(place.outer, block, grad_SHD, saved[1:], place.inner)
    dq_THD = torch.cat(_to_tokens(place, dq_SHD, [h.stop - h.start for h in split]), 1)
    dk_TGD, dv_TGD = (_summed(place, _folded(x, mine), split, kv_heads) for x in (dk_SGD, dv_SGD))
    return dq_THD, dk_TGD, dv_TGD


def _inner(comm: Comm, job: Job) -> Method:
    return WHOLE if comm.size == job.ulysses else RING


def _to_heads(place: Around, x_THD: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
    """All tokens of the group, ordered, for this rank's heads: [S, heads, D]."""
    parts = [x_THD[:, start:stop].contiguous() for start, stop in spans]
    rank = place.comm.rank
    shapes = [(tokens, *parts[rank].shape[1:]) for tokens in place.tokens]
    whole = torch.cat(with_own(place.comm, _travelled(place, parts, shapes), parts[rank]), 0)
    return whole if place.index is None else whole.index_select(0, place.index)


def _to_tokens(place: Around, x_SHD: Tensor, heads: Sequence[int]) -> list[Tensor]:
    """This rank's tokens, for the heads of every rank of the group: a tensor [T, heads, D] for each rank."""
    if place.index is not None:
        x_SHD = torch.empty_like(x_SHD).index_copy_(0, place.index, x_SHD)
    rank = place.comm.rank
    parts = list(x_SHD.split(place.tokens, 0))  # type: ignore[no-untyped-call]
    shapes = [(place.tokens[rank], count, x_SHD.shape[2]) for count in heads]
    return with_own(place.comm, _travelled(place, parts, shapes), parts[rank])


def _travelled(place: Around, parts: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> tuple[Tensor, ...]:
    return all_to_all(place.comm, parts, shapes).wait()


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


def _summed(place: Around, dx_SGD: Tensor, split: Sequence[Heads], kv_heads: int) -> Tensor:
    """Gradients of this rank's keys: heads that several ranks read are added up."""
    found = _to_tokens(place, dx_SGD, [h.last - h.first for h in split])
    if all(before.last == after.first for before, after in pairwise(split)):
        return torch.cat(found, 1)
    kind = accumulation(dx_SGD.dtype)
    whole = torch.zeros((found[0].shape[0], kv_heads, dx_SGD.shape[2]), dtype=kind, device=dx_SGD.device)
    for heads, part in zip(split, found, strict=True):
        whole[:, heads.first : heads.last] += part
    return whole.to(dx_SGD.dtype)


def _on(index: tuple[int, ...], device: torch.device) -> Tensor:
    """On the device, for which the host does not wait."""
    found = torch.tensor(index)
    return found.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else found.to(device)


ULYSSES = Method("ulysses", forward, backward, plain=False, merges=False)
USP = Method("usp", forward, backward, plain=False, merges=False)
