"""From sequences to micro-steps: dealt to the ranks of the pool, packed on one token axis."""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fourfold.backends.batch import placing
from fourfold.backends.batch.lazy import Part
from fourfold.backends.batch.placing import Turn
from fourfold.backends.batch.sequences import IGNORED, Document
from fourfold.backends.communication.aside import moved
from fourfold.hardware.errors import UsageError
from fourfold.ir.batch import Piece, Team
from fourfold.ir.plan import Plan
from fourfold.ir.sequence.tokens import Shard, contiguous


@dataclass(frozen=True, slots=True)
class MicroStep:
    """Which documents of the batch one rank runs at once."""

    documents: tuple[int, ...]
    tokens: int


def dealt(lengths: Sequence[int], *, ranks: int, capacity: int) -> tuple[tuple[MicroStep, ...], ...]:
    """For each rank of the pool, its micro-steps: as few as hold all, equal in number, tokens balanced.

    Longest first to the emptiest bin (LPT, Graham 1969); where that overfills a bin, best fit; where that fails, one
    more micro-step. Bins of like size run in the same micro-step. Raises UsageError for a sequence longer than
    `capacity`.
    """
    for i, length in enumerate(lengths):
        if length > capacity:
            raise UsageError(
                f"sequence {i} has {length} tokens, and a micro-step holds {capacity}: plan for a workload that "
                f"contains sequences of this length, or cut them"
            )
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    steps = max(1, -(-sum(lengths) // (capacity * ranks)))
    while True:
        bins = _balanced(lengths, order, steps * ranks, capacity) or _best_fit(lengths, order, steps * ranks, capacity)
        if bins is not None:
            bins.sort(key=lambda b: -b.tokens)
            return tuple(tuple(bins[rank + ranks * step] for step in range(steps)) for rank in range(ranks))
        steps += 1


def _balanced(lengths: Sequence[int], order: Sequence[int], count: int, capacity: int) -> list[MicroStep] | None:
    heap = [(0, b) for b in range(count)]
    held: list[list[int]] = [[] for _ in range(count)]
    for i in order:
        load, b = heap[0]
        if load + lengths[i] > capacity:
            return None
        heapq.heapreplace(heap, (load + lengths[i], b))
        held[b].append(i)
    return [MicroStep(tuple(h), sum(lengths[i] for i in h)) for h in held]


def _best_fit(lengths: Sequence[int], order: Sequence[int], count: int, capacity: int) -> list[MicroStep] | None:
    """Each to the fullest bin with room; `rooms` are (room, bin) in ascending order."""
    rooms = [(capacity, b) for b in range(count)]
    held: list[list[int]] = [[] for _ in range(count)]
    for i in order:
        at = bisect.bisect_left(rooms, (lengths[i], 0))
        if at == count:
            return None
        room, b = rooms.pop(at)
        held[b].append(i)
        bisect.insort(rooms, (room - lengths[i], b))
    return [MicroStep(tuple(h), sum(lengths[i] for i in h)) for h in held]


@dataclass(frozen=True, slots=True)
class Packed:
    """One micro-step's tensors on the device, padded: ids [1, T], positions, targets, weights [T].

    `lengths` are those of the runs it holds, padding last: of whole documents where no team shares them.
    """

    tokens: Tensor
    positions: Tensor
    targets: Tensor
    weights: Tensor
    lengths: tuple[int, ...]

    def to(self, device: torch.device) -> Packed:
        """The same on `device`."""
        moved = [x.to(device, non_blocking=True) for x in (self.tokens, self.positions, self.targets, self.weights)]
        return Packed(moved[0], moved[1], moved[2], moved[3], self.lengths)


Documents = Sequence[Document] | Mapping[int, Part]
"""Sequences of a batch by their place: whole, or what was read of them."""


@dataclass(frozen=True, slots=True)
class Portion:
    """What one rank runs at once: a turn, and the documents of the batch."""

    documents: Documents
    turn: Turn

    def packed(self, *, bucket: int, device: torch.device) -> Packed:
        """This rank's tokens of it, as regions run them."""
        return filled(self.documents, self.turn.run, bucket=bucket, device=device, most=self.turn.most)


def dealt_turns(lengths: Sequence[int], plan: Plan, pool_rank: int) -> tuple[Turn, ...]:
    """The turns of one rank of the pool where sequences are dealt to the groups of sp ranks as the plan shares them."""
    mesh, how = plan.mesh, plan.sharing
    first = pool_rank // mesh.sp * mesh.sp
    ranks = tuple(range(first, first + mesh.sp))
    method = how.method if mesh.sp > 1 else "whole"
    found = []
    for step, micro in enumerate(dealt(lengths, ranks=mesh.dp, capacity=plan.capacity * mesh.sp)[first // mesh.sp]):
        pieces = tuple(Piece(i, 0, lengths[i], step, ranks, method) for i in micro.documents)
        part = placing.Part(Team(step, ranks, method, pieces, how), pool_rank - first)
        most = max(shard.tokens for shard in part.shards)
        found.append(Turn(pool_rank, step, (part,) if pieces else (), most=most))
    return tuple(found)


def padded(tokens: int, bucket: int) -> int:
    """Whole buckets, at least one."""
    return max(bucket, -(-tokens // bucket) * bucket)


def pack(docs: Sequence[Document], *, bucket: int, device: torch.device) -> Packed:
    """The documents on one token axis, padded with documents of their own that have no target."""
    (held,) = contiguous(tuple(len(d) for d in docs), 1)
    return filled(docs, held, bucket=bucket, device=device)


def filled(docs: Documents, held: Shard, *, bucket: int, device: torch.device, most: int = 0) -> Packed:
    """The tokens of the documents that one rank holds, padded to a whole bucket, and as far as `most` tokens are."""
    total, size = held.tokens, padded(max(most, held.tokens), bucket)
    parts = [(docs[run.document], slice(run.start, run.start + run.count * run.step, run.step)) for run in held.runs]
    rest = torch.zeros(size - total, dtype=torch.long)
    tokens = torch.cat([*(doc.tokens[there] for doc, there in parts), rest])
    targets = torch.cat([*(doc.targets[there] for doc, there in parts), rest.fill_(IGNORED)])
    weights = torch.cat([*(doc.weights[there] for doc, there in parts), torch.zeros(size - total)])
    lengths = [run.count for run in held.runs]
    padding = [min(bucket, size - at) for at in range(total, size, bucket)]
    ids, at, targets, weights = (moved(x, device) for x in (tokens[None], _positions(held, size), targets, weights))
    return Packed(ids, at, targets, weights, tuple(lengths + padding))


def _positions(held: Shard, size: int) -> Tensor:
    """Of each stored token in its document; 0 where `size` goes beyond them."""
    firsts = torch.tensor([(run.start - run.at * run.step, run.step, run.count) for run in held.runs]).reshape(-1, 3)
    first, step, count = firsts.long().unbind(1)
    found = torch.zeros(size, dtype=torch.long)
    found[: held.tokens] = torch.arange(held.tokens) * step.repeat_interleave(count) + first.repeat_interleave(count)
    return found
