"""Which groups the ranks of the pool form for one micro-batch, and which sequences each takes: by search."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from fourfold.passes.batch.placing.gangs import neighbours
from fourfold.passes.batch.timing.refusal import room
from fourfold.passes.batch.timing.terms import Terms

Counts = tuple[int, ...]
"""How many groups of each degree."""

PATIENCE = 16
"""Choices of groups that are tried until one has room."""


@dataclass(frozen=True)
class Offer:
    """What groups of a power of two of ranks offer: tokens they hold, their method, the seconds of a length on them.

    More ranks than there are heads cannot exchange them, and share by a ring. narrowest: the least ranks of a group.
    """

    terms: Terms
    narrowest: int = 1

    @cached_property
    def degrees(self) -> tuple[int, ...]:
        """1, 2, 4, .. up to the pool, from the narrowest on."""
        every = tuple(2**k for k in range(self.terms.bounds.ranks.bit_length()))
        return tuple(degree for degree in every if degree >= min(self.narrowest, every[-1]))

    @cached_property
    def rooms(self) -> tuple[int, ...]:
        """Tokens of a group of each degree."""
        return tuple(room(degree, self.terms) for degree in self.degrees)

    @cached_property
    def _starts(self) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(int(first) for first in neighbours(degree, self.terms)) for degree in self.degrees)

    @cached_property
    def _known(self) -> dict[int, tuple[float, ...]]:
        return {}

    def method(self, degree: int) -> str:
        """How so many ranks share."""
        if degree == 1:
            return "whole"
        return "ulysses" if degree <= self.terms.bounds.heads else "ring"

    def seconds(self, length: int) -> tuple[float, ...]:
        """Seconds that a sequence takes each rank of a group, by degree; infinite where it has no room."""
        if length not in self._known:
            linear = self.terms.linear * length
            self._known[length] = tuple(
                linear / n + self.terms.shared(length, n, self.method(n)) if length <= held else float("inf")
                for n, held in zip(self.degrees, self.rooms, strict=True)
            )
        return self._known[length]

    def seats(self, counts: Counts) -> tuple[int, ...] | None:
        """First ranks of the groups, widest first, in nodes where they fit in one; None where not all have a place."""
        taken, found = 0, []
        for count, degree, starts in zip(reversed(counts), reversed(self.degrees), reversed(self._starts), strict=True):
            wanted = count
            for first in starts if wanted else ():
                mask = ((1 << degree) - 1) << first
                if not taken & mask:
                    taken |= mask
                    found.append(first)
                    wanted -= 1
                if not wanted:
                    break
            if wanted:
                return None
        return tuple(found)

    def alike(self, at: int) -> Counts:
        """As many groups of one degree as there are places for, and what is left in smaller ones."""
        left, counts = self.terms.bounds.ranks, [0] * len(self.degrees)
        for k in range(at, -1, -1):
            counts[k], left = divmod(left, self.degrees[k])
        while self.seats(tuple(counts)) is None:
            # Nodes that are no power of two: what is left gives way first, as the longest may need one of `at`.
            wide = max((k for k in range(1, at) if counts[k]), default=at)
            counts[wide] -= 1
            counts[wide - 1] += 2
        return tuple(counts)

    def bound(self, lengths: Sequence[int]) -> float:
        """Seconds that no choice of groups goes below: all work spread evenly, or the longest sequence alone."""
        each = [self.seconds(length) for length in lengths]
        area = sum(min(n * one for n, one in zip(self.degrees, row, strict=True)) for row in each)
        return self.terms.fixed + max(area / self.terms.bounds.ranks, max(map(min, each)))


@dataclass(frozen=True, slots=True)
class Groups:
    """The groups of a micro-batch, widest first: the sequences of each by their place in it; seconds of the slowest."""

    counts: Counts
    members: tuple[tuple[int, ...], ...]
    seconds: float


def grouped(lengths: Sequence[int], offer: Offer, *, tries: int, close: float) -> Groups | None:
    """The best of `tries` choices of groups, or the first within `close` of the bound; None where none has room.

    Lengths descend. Begins with groups of one degree; then, from the best choice known, a group is split in two or two
    are joined. In small pools that is every choice. Source: FlexSP's problem (arXiv 2412.01523, eq. 6-10).
    """
    if sum(lengths) > offer.terms.bounds.ranks * offer.terms.bounds.capacity:
        return None
    goal = (1 + close) * offer.bound(lengths)
    best: Groups | None = None
    waiting: list[tuple[float, Counts]] = []
    seen: set[Counts] = set()
    fresh = [offer.alike(at) for at in range(len(offer.degrees))]
    while len(seen) < tries and (best is None or best.seconds > goal):
        for counts in fresh:
            if counts not in seen and len(seen) < tries:
                seen.add(counts)
                found = dealt(lengths, counts, offer) if offer.seats(counts) is not None else None
                heapq.heappush(waiting, (found.seconds if found else float("inf"), counts))
                if found and (best is None or found.seconds < best.seconds):
                    best = found
        if not waiting or (best is None and len(seen) > PATIENCE):
            break
        fresh = list(_beside(heapq.heappop(waiting)[1]))
    return best


def _beside(counts: Counts) -> Iterator[Counts]:
    """With one group split in two, or two joined."""
    for k in range(len(counts) - 1):
        for narrow, wide in ((2, -1), (-2, 1)):
            if counts[k] + narrow >= 0 and counts[k + 1] + wide >= 0:
                yield (*counts[:k], counts[k] + narrow, counts[k + 1] + wide, *counts[k + 2 :])


def dealt(lengths: Sequence[int], counts: Counts, offer: Offer) -> Groups | None:
    """The sequences, longest first, each to the group that has done with it soonest; None where one finds no room.

    Source: LPT (Graham 1969) for machines of several speeds. Groups of a degree lie in a heap by what they have to do.
    """
    heaps: dict[int, list[tuple[float, int, int]]] = {}
    first = 0
    for k in range(len(counts) - 1, -1, -1):
        if counts[k]:
            heaps[k] = [(0.0, first + i, offer.rooms[k]) for i in range(counts[k])]
            first += counts[k]
    members: list[list[int]] = [[] for _ in range(first)]
    for i, length in enumerate(lengths):
        best = _soonest(length, heaps, offer.seconds(length))
        if best is None:
            return None
        end, k, at = best
        heap = heaps[k]
        _, group, free = heap[at]
        changed = end, group, free - length
        if at:
            heap[at] = changed
            heapq.heapify(heap)
        else:
            heapq.heapreplace(heap, changed)
        members[group].append(i)
    slowest = max(load for heap in heaps.values() for load, _, _ in heap)
    return Groups(counts, tuple(map(tuple, members)), offer.terms.fixed + slowest)


def _soonest(
    length: int, heaps: Mapping[int, Sequence[tuple[float, int, int]]], seconds: Sequence[float]
) -> tuple[float, int, int] | None:
    """When the sequence would be done at the soonest, in which heap and where in it; None where nothing has room."""
    best = None
    for k, heap in heaps.items():
        at = 0
        if heap[0][2] < length:
            with_room = [(one[0], i) for i, one in enumerate(heap) if one[2] >= length]
            if not with_room:
                continue
            at = min(with_room)[1]
        end = heap[at][0] + seconds[k]
        if best is None or end < best[0]:
            best = end, k, at
    return best
