"""Seconds of a step under a batch plan, and the seconds that no placement can go below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fourfold.ir.batch import BatchPlan, Team
from fourfold.passes.batch.orders import again
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


def timed(batch: BatchPlan, terms: Terms, paces: Sequence[float] = ()) -> Timing:
    """Ranks that share a team wait for each other in its micro-step; under ZeRO 2 and 3 all wait for all.

    Chunks that are dropped take another forward. paces: what each rank's seconds are multiplied by, if they differ.
    """
    twice = again(batch, terms.bounds.zero)
    clock, busy = [0.0] * batch.ranks, [0.0] * batch.ranks
    for step, teams in _steps(batch).items():
        own: dict[int, float] = {}
        for team in teams:
            seconds = attention(team, terms)
            for rank in team.ranks:
                own[rank] = own.get(rank, 0.0) + seconds
        for rank in own:
            own[rank] += terms.fixed + terms.linear * batch.held[rank, step]
            own[rank] *= paces[rank] if paces else 1.0
            own[rank] *= 1.0 + terms.forward * ((rank, step) in twice)
            busy[rank] += own[rank]
        together = [list(range(batch.ranks))] if terms.bounds.zero > 1 else joined(teams)
        for ranks in together:
            end = max(clock[r] for r in ranks) + max(own.get(r, 0.0) for r in ranks)
            for rank in ranks:
                clock[rank] = end
    return Timing(terms.once + max(clock), tuple(busy), terms.once + bound(batch.lengths, terms))


def attention(team: Team, terms: Terms) -> float:
    """Seconds of a team's attentions on each of its ranks; a later chunk sees all tokens before it."""
    n, method = len(team.ranks), team.method
    total = 0.0
    for piece in team.pieces:
        total += terms.shared(piece.stop, n, method)
        total -= terms.shared(piece.start, n, method) if piece.start else 0.0
    return total


def bound(lengths: Sequence[int], terms: Terms) -> float:
    """The larger of all work spread evenly and the longest single sequence, each by its best number of ranks."""
    return max(sides(lengths, terms))


def sides(lengths: Sequence[int], terms: Terms) -> tuple[float, float]:
    """Seconds of all work spread evenly, and of the longest single sequence."""
    ranks, capacity = terms.bounds.ranks, terms.bounds.capacity
    known: dict[int, tuple[float, float]] = {}
    for length in set(lengths):
        times = [(n, terms.task(length, n)) for n in worth(length, terms)]
        known[length] = min(n * each for n, each in times), min(each for _, each in times)
    steps = -(-sum(lengths) // (capacity * ranks))
    area = sum(known[length][0] for length in lengths) / ranks + steps * terms.fixed
    return area, max(longest for _, longest in known.values()) + terms.fixed


def worth(length: int, terms: Terms) -> tuple[int, ...]:
    """Numbers of ranks that may pay for a sequence: the fewest that hold it, and more that have whole tiles each."""
    most = terms.bounds.ranks
    fewest = 1 if length <= room(1, terms) else min(most, -(-length // (terms.bounds.capacity - SLACK)))
    wide = max(fewest, min(most, length // TILE))
    powers = (2**k for k in range(wide.bit_length()))
    return tuple(sorted({fewest, wide, *(n for n in powers if fewest <= n)}))


def _steps(batch: BatchPlan) -> dict[int, list[Team]]:
    found: dict[int, list[Team]] = {}
    for team in batch.teams:
        found.setdefault(team.micro_step, []).append(team)
    return found


def joined(teams: Sequence[Team]) -> list[list[int]]:
    """Ranks that one team or several hold together."""
    head = {rank: rank for team in teams for rank in team.ranks}

    def root(rank: int) -> int:
        while head[rank] != rank:
            head[rank] = head[head[rank]]
            rank = head[rank]
        return rank

    for team in teams:
        for rank in team.ranks[1:]:
            head[root(rank)] = root(team.ranks[0])
    found: dict[int, list[int]] = {}
    for rank in head:
        found.setdefault(root(rank), []).append(rank)
    return list(found.values())
