"""Seconds of the micro-steps of a batch plan on each rank, and when the last rank has finished them.

Attention and regions are apart, as a remap evens out the second only: ranks that move tokens wait for each other
before and after every attention.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fourfold.ir.batch import BatchPlan, Move, Team
from fourfold.passes.batch.timing.exchange import exchanged
from fourfold.passes.batch.timing.orders import again
from fourfold.passes.batch.timing.terms import Terms


@dataclass(frozen=True, slots=True)
class Loaded:
    """One micro-step without its moves.

    held: tokens by rank. attention: seconds of every rank. shared: ranks of each team of several. host: shares of what
    ranks keep that go to the host's memory. factor: by what the seconds of every rank's regions are multiplied.
    """

    held: Mapping[int, int]
    attention: np.ndarray
    shared: tuple[tuple[int, ...], ...]
    host: Mapping[int, float]
    factor: np.ndarray


@dataclass(frozen=True, slots=True)
class MicroStep:
    """One micro-step: seconds that each rank is busy, and until it ends once all that it waits for have begun.

    joined: places of ranks in groups that wait for each other.
    """

    busy: np.ndarray
    lasts: np.ndarray
    joined: tuple[np.ndarray, ...]


def loaded(batch: BatchPlan, terms: Terms, paces: Sequence[float] = ()) -> Mapping[int, Loaded]:
    """All micro-steps that any rank runs, in order.

    paces: what each rank's seconds are multiplied by, if they differ.
    """
    found: dict[int, list[Team]] = {}
    for team in batch.teams:
        found.setdefault(team.micro_step, []).append(team)
    held: dict[int, dict[int, int]] = {step: {} for step in found}
    for (rank, step), tokens in batch.held.items():
        held[step][rank] = tokens
    host: dict[int, dict[int, float]] = {}
    for one in batch.offloads:
        host.setdefault(one.micro_step, {})[one.rank] = one.share
    pace = np.array(paces) if paces else np.ones(batch.ranks)
    twice = {step: np.zeros(batch.ranks) for step in found}
    for rank, step in again(batch, terms.bounds.zero):
        if step in twice:
            twice[step][rank] = 1.0
    return {
        step: Loaded(
            held[step],
            _attention(teams, batch, terms) * pace * (1.0 + terms.attends * twice[step]),
            tuple({team.ranks: None for team in teams if len(team.ranks) > 1}),
            host.get(step, {}),
            pace * (1.0 + terms.forward * twice[step]),
        )
        for step, teams in found.items()
    }


def micro_step(load: Loaded, moves: Sequence[Move], terms: Terms) -> MicroStep:
    """One micro-step with these moves.

    Ranks that move tokens take, together, the longest attention, the most tokens and the slowest exchange of any. Under
    ZeRO 2 and 3 all ranks finish together, else those that teams and moves join.
    """
    run, regions, remap = dict(load.held), np.zeros(terms.bounds.ranks), np.zeros(terms.bounds.ranks)
    for move in moves:
        run[move.source] -= move.tokens
        run[move.target] += move.tokens
    ranks = list(run)
    regions[ranks] = (terms.fixed + terms.linear * np.array(list(run.values()))) * load.factor[ranks]
    for rank, share in load.host.items():
        regions[rank] += terms.exposed(share, run[rank], float(load.attention[rank] + regions[rank]))
    for rank, seconds in exchanged(moves, terms).items():
        remap[rank] = seconds * load.factor[rank]
    busy = load.attention + regions + remap
    lasts = busy.copy()
    moved = [(move.source, move.target) for move in moves]
    for group in map(np.array, joined(moved)):
        lasts[group] = sum(each[group].max() for each in (load.attention, regions, remap))
    groups = [range(len(busy))] if terms.bounds.zero > 1 else joined((*load.shared, *moved))
    waiting = tuple(np.array(each) for each in groups)
    for group in waiting:
        lasts[group] = lasts[group].max()
    return MicroStep(busy, lasts, waiting)


def clocked(steps: Iterable[MicroStep], terms: Terms) -> float:
    """Seconds until the last rank has finished: those of a group begin when the last of them can.

    A line of p stages takes its rank's micro-steps one after the other at the pace of its slowest stage, and p - 1
    times the longest of them to fill and to drain: exact for equal ones (1F1B), near it for others.
    """
    clock, longest = np.zeros(terms.bounds.ranks), np.zeros(terms.bounds.ranks)
    for step in steps:
        for group in step.joined:
            clock[group] = clock[group].max()
        clock += step.lasts
        longest = np.maximum(longest, step.lasts)
    return terms.slowest * float((clock + (terms.stages - 1) * longest).max())


def stepped(batch: BatchPlan, terms: Terms, paces: Sequence[float] = ()) -> list[MicroStep]:
    """All micro-steps with their moves, in order."""
    moves = batch.moved
    return [micro_step(load, moves.get(step, ()), terms) for step, load in loaded(batch, terms, paces).items()]


def finished(batch: BatchPlan, terms: Terms) -> float:
    """Seconds until the last rank has finished all micro-steps."""
    return clocked(stepped(batch, terms), terms)


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


def _attention(teams: Sequence[Team], batch: BatchPlan, terms: Terms) -> np.ndarray:
    """Seconds of every rank: what it has alone comes last, and fills the waits of what it shares.

    Those that it shares wait for each other, as their messages cross the same links. A chunk's waits are not filled:
    how they are spread over the chunks of a sequence is not known.
    """
    shared, waited, alone = (np.zeros(batch.ranks) for _ in range(3))
    for team in teams:
        seconds, waits = attention(team, terms)
        if len(team.ranks) == 1:
            alone[team.ranks[0]] += seconds
            continue
        here, piece = list(team.ranks), team.pieces[0]
        shared[here] += seconds
        waited[here] += waits if piece.tokens == batch.lengths[piece.sequence] else 0.0
    found: np.ndarray = shared + np.maximum(0.0, alone - waited)
    return found


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
