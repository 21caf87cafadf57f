"""Seconds of the micro-steps of a batch plan on each rank, and when each rank has finished them.

Attention and regions are apart, as a remap evens out the second only: ranks that move tokens wait for each other
before and after every attention.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fourfold.ir.batch import BatchPlan, Move, Team
from fourfold.passes.batch.exchange import exchanged
from fourfold.passes.batch.terms import Terms


@dataclass(frozen=True, slots=True)
class Loaded:
    """One micro-step without its moves: by rank its tokens and its seconds of attention; ranks that share a team."""

    held: Mapping[int, int]
    attention: Mapping[int, float]
    shared: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Spans:
    """One micro-step: seconds that each rank is busy, and ranks that finish together, with when after they begin."""

    busy: Mapping[int, float]
    together: tuple[tuple[tuple[int, ...], float], ...]


def loaded(batch: BatchPlan, terms: Terms) -> Mapping[int, Loaded]:
    """All micro-steps that any rank runs, in order."""
    found: dict[int, list[Team]] = {}
    for team in batch.teams:
        found.setdefault(team.micro_step, []).append(team)
    return {
        step: Loaded(
            {rank: batch.held[rank, step] for rank in sorted({rank for team in teams for rank in team.ranks})},
            _attention(teams, terms),
            tuple({team.ranks: None for team in teams if len(team.ranks) > 1}),
        )
        for step, teams in found.items()
    }


def spans(load: Loaded, moves: Sequence[Move], terms: Terms) -> Spans:
    """One micro-step with these moves.

    Ranks that move tokens take, together, the longest attention, the most tokens and the slowest exchange of any. Under
    ZeRO 2 and 3 all ranks finish together, else those that teams and moves join.
    """
    run, remap = dict(load.held), exchanged(moves, terms)
    for move in moves:
        run[move.source] -= move.tokens
        run[move.target] += move.tokens
    regions = {rank: terms.fixed + terms.linear * tokens for rank, tokens in run.items()}
    busy = {rank: load.attention[rank] + regions[rank] + remap.get(rank, 0.0) for rank in run}
    own = dict(busy)
    moved = [(move.source, move.target) for move in moves]
    for ranks in joined(moved):
        slowest = sum(max(each.get(rank, 0.0) for rank in ranks) for each in (load.attention, regions, remap))
        own |= dict.fromkeys(ranks, slowest)
    everyone = [tuple(range(terms.bounds.ranks))]
    groups = everyone if terms.bounds.zero > 1 else joined((*load.shared, *moved, *((rank,) for rank in run)))
    return Spans(busy, tuple((ranks, max(own.get(rank, 0.0) for rank in ranks)) for ranks in groups))


def clocked(steps: Iterable[Spans], ranks: int) -> tuple[float, ...]:
    """When each rank has finished: those of a group begin when the last of them can."""
    clock = [0.0] * ranks
    for step in steps:
        for group, seconds in step.together:
            end = max(clock[rank] for rank in group) + seconds
            for rank in group:
                clock[rank] = end
    return tuple(clock)


def finished(batch: BatchPlan, terms: Terms) -> float:
    """Seconds until the last rank has finished all micro-steps."""
    return max(clocked(stepped(batch, terms), batch.ranks))


def stepped(batch: BatchPlan, terms: Terms) -> list[Spans]:
    """All micro-steps with their moves, in order."""
    moves = batch.moved
    return [spans(load, moves.get(step, ()), terms) for step, load in loaded(batch, terms).items()]


def attention(team: Team, terms: Terms) -> tuple[float, float]:
    """Seconds of a team's attentions on each of its ranks, and those of them in which it waits for messages.

    A later chunk sees all tokens before it.
    """
    n, method = len(team.ranks), team.method
    total = waits = 0.0
    for piece in team.pieces:
        for length, sign in ((piece.stop, 1.0), (piece.start, -1.0)):
            if length:
                total += sign * terms.shared(length, n, method)
                waits += sign * terms.waits(length, n, method)
    return total, min(total, max(0.0, waits))


def _attention(teams: Sequence[Team], terms: Terms) -> Mapping[int, float]:
    """Seconds by rank: what it has alone comes last, and fills the waits of what it shares.

    Those that it shares wait for each other, as their messages cross the same links.
    """
    shared: dict[int, float] = {}
    spare: dict[int, float] = {}
    for team in teams:
        seconds, waits = attention(team, terms)
        for rank in team.ranks:
            shared.setdefault(rank, 0.0)
            spare.setdefault(rank, 0.0)
            if len(team.ranks) > 1:
                shared[rank] += seconds
                spare[rank] += waits
            else:
                spare[rank] -= seconds
    return {rank: shared[rank] + max(0.0, -spare[rank]) for rank in shared}


def joined(groups: Iterable[Sequence[int]]) -> list[tuple[int, ...]]:
    """Ranks that one group or several hold together."""
    head: dict[int, int] = {}

    def root(rank: int) -> int:
        while head.setdefault(rank, rank) != rank:
            head[rank] = head[head[rank]]
            rank = head[rank]
        return rank

    for ranks in groups:
        for rank in ranks:
            head[root(rank)] = root(ranks[0])
    found: dict[int, list[int]] = {}
    for rank in head:
        found.setdefault(root(rank), []).append(rank)
    return [tuple(ranks) for ranks in found.values()]
