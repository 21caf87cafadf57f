"""Seconds of a step under a batch plan, and the seconds that no placement can go below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fourfold.ir.batch import BatchPlan
from fourfold.passes.batch.clock import clocked, stepped
from fourfold.passes.batch.refusal import SLACK, room
from fourfold.passes.batch.terms import Terms

TILE = 128
"""Queries that attention kernels take at once: ranks with fewer gain nothing."""


@dataclass(frozen=True, slots=True)
class Timing:
    """One step: its seconds, those in which each rank computes, and what bounds it from below."""

    seconds: float
    busy: tuple[float, ...]
    bound: float

    @property
    def balance(self) -> float:
        """The mean rank's work over the fullest rank's."""
        return sum(self.busy) / len(self.busy) / max(self.busy)

    @property
    def gap(self) -> float:
        """How far the step is above its bound."""
        return self.seconds / self.bound - 1.0


def timed(batch: BatchPlan, terms: Terms) -> Timing:
    """Ranks that share a team wait for each other in its micro-step; under ZeRO 2 and 3 all wait for all."""
    steps = stepped(batch, terms)
    busy = tuple(sum(step.busy.get(rank, 0.0) for step in steps) for rank in range(batch.ranks))
    return Timing(terms.once + max(clocked(steps, batch.ranks)), busy, terms.once + bound(batch.lengths, terms))


def bound(lengths: Sequence[int], terms: Terms) -> float:
    """The larger of all work spread evenly and the longest single attention, each by its best number of ranks.

    Others fill what the first waits for messages, and a remap spreads what the second has else to do over all ranks.
    """
    ranks, capacity = terms.bounds.ranks, terms.bounds.capacity
    known: dict[int, tuple[float, float]] = {}
    for length in set(lengths):
        counts = worth(length, terms)
        area = min(n * terms.least(length, n) for n in counts) + terms.linear * length
        known[length] = area, min(terms.fastest(length, n)[0] for n in counts) + terms.linear * length / ranks
    steps = -(-sum(lengths) // (capacity * ranks))
    every = sum(known[length][0] for length in lengths) / ranks + steps * terms.fixed
    return max(every, max(longest for _, longest in known.values()) + terms.fixed)


def worth(length: int, terms: Terms) -> tuple[int, ...]:
    """Numbers of ranks that may pay for a sequence: the fewest that hold it, and more that have whole tiles each."""
    most = terms.bounds.ranks
    fewest = 1 if length <= room(1, terms) else min(most, -(-length // (terms.bounds.capacity - SLACK)))
    wide = max(fewest, min(most, length // TILE))
    powers = (2**k for k in range(wide.bit_length()))
    return tuple(sorted({fewest, wide, *(n for n in powers if fewest <= n)}))
