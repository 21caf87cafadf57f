"""Seconds of a step under a batch plan: all policies are priced here, whatever they place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fourfold.ir.batch import BatchPlan, Move, Team
from fourfold.passes.batch.bounding import bound
from fourfold.passes.batch.orders import again
from fourfold.passes.batch.terms import Terms


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


@dataclass(frozen=True, slots=True)
class MicroStep:
    """One micro-step: seconds of attention and of regions on every rank, none where it is idle; who waits for whom.

    `joined`: places of ranks in groups that wait for each other. `moving`: seconds of a remap, where there is one.
    """

    attention: np.ndarray
    regions: np.ndarray
    joined: tuple[np.ndarray, ...]
    moving: np.ndarray | None = None

    @property
    def own(self) -> np.ndarray:
        """Seconds of each rank, waiting for others inside an attention only where tokens are moved around it."""
        found: np.ndarray = self.attention + self.regions
        if self.moving is None:
            return found
        found += self.moving
        for ranks in self.joined:
            if self.moving[ranks].any():
                found[ranks] = sum(part[ranks].max() for part in (self.attention, self.regions, self.moving))
        return found


def timed(batch: BatchPlan, terms: Terms, paces: Sequence[float] = ()) -> Timing:
    """Ranks that share a team wait for each other in its micro-step; under ZeRO 2 and 3 all wait for all.

    A line of p stages takes its rank's micro-steps one after the other at the pace of its slowest stage, and p - 1
    times the longest of them to fill and to drain: exact for equal ones (1F1B), near it for others.
    paces: what each rank's seconds are multiplied by, if they differ.
    """
    clock, busy, longest = (np.zeros(batch.ranks) for _ in range(3))
    for step in micro_steps(batch, terms):
        own = step.own * np.array(paces) if paces else step.own
        busy += own
        for ranks in [np.arange(batch.ranks)] if terms.bounds.zero > 1 else step.joined:
            clock[ranks] = clock[ranks].max() + own[ranks].max()
            longest[ranks] = np.maximum(longest[ranks], own[ranks].max())
        if terms.bounds.zero < 2:
            alone = np.ones(batch.ranks, dtype=bool)
            for ranks in step.joined:
                alone[ranks] = False
            clock[alone] += own[alone]
            longest[alone] = np.maximum(longest[alone], own[alone])
    least = bound(batch.lengths, terms, offloaded=bool(batch.offloads))
    seconds = terms.slowest * float((clock + (terms.stages - 1) * longest).max(initial=0.0))
    return Timing(terms.once + seconds, tuple(busy.tolist()), terms.once + least)


def micro_steps(batch: BatchPlan, terms: Terms) -> Iterator[MicroStep]:
    """Each micro-step in order."""
    twice, teams = again(batch, terms.bounds.zero), _by_step(batch.teams)
    tokens: dict[int, dict[int, int]] = {}
    for (rank, step), many in batch.run.items():
        tokens.setdefault(step, {})[rank] = many
    moves: dict[int, list[Move]] = {}
    for move in batch.moves:
        moves.setdefault(move.micro_step, []).append(move)
    host: dict[int, dict[int, float]] = {}
    for one in batch.offloads:
        host.setdefault(one.micro_step, {})[one.rank] = one.share
    for step, here in teams.items():
        attended, regions = np.zeros(batch.ranks), np.zeros(batch.ranks)
        for team in here:
            attended[list(team.ranks)] += attention(team, terms)
        ranks = list(tokens[step])
        regions[ranks] += terms.fixed + terms.linear * np.array(list(tokens[step].values()))
        ran = [rank for rank in ranks if (rank, step) in twice]
        attended[ran] *= 1.0 + terms.attends
        regions[ran] *= 1.0 + terms.forward
        for rank, share in host.get(step, {}).items():
            regions[rank] += terms.exposed(share, tokens[step][rank], float(attended[rank] + regions[rank]))
        moved = moves.get(step, [])
        moving = _moving(moved, batch.ranks, terms) if moved else None
        yield MicroStep(attended, regions, _joined(here, moved), moving)


def attention(team: Team, terms: Terms) -> float:
    """Seconds of a team's attentions on each of its ranks, where a later chunk sees all tokens before it."""
    n, method = len(team.ranks), team.method
    total = 0.0
    for piece in team.pieces:
        total += terms.shared(piece.stop, n, method)
        total -= terms.shared(piece.start, n, method) if piece.start else 0.0
    return total


def _moving(moves: Sequence[Move], ranks: int, terms: Terms) -> np.ndarray:
    """Seconds of each rank's part in a remap: of what it gives or takes, over the slowest link that it uses."""
    given, nodes = np.zeros(ranks), np.ones(ranks, dtype=int)
    for move in moves:
        across = 1 + (move.source // terms.node != move.target // terms.node)
        for rank in (move.source, move.target):
            given[rank] += move.tokens
            nodes[rank] = max(nodes[rank], across)
    return np.array([terms.moved(int(t), int(n)) if t else 0.0 for t, n in zip(given, nodes, strict=True)])


def _by_step(teams: Sequence[Team]) -> Mapping[int, list[Team]]:
    found: dict[int, list[Team]] = {}
    for team in teams:
        found.setdefault(team.micro_step, []).append(team)
    return found


def _joined(teams: Sequence[Team], moves: Sequence[Move]) -> tuple[np.ndarray, ...]:
    """Groups of several ranks that one team, several teams or a remap hold together."""
    links = [team.ranks for team in teams if len(team.ranks) > 1] + [(move.source, move.target) for move in moves]
    head: dict[int, int] = {}

    def root(rank: int) -> int:
        while head.setdefault(rank, rank) != rank:
            head[rank] = head[head[rank]]
            rank = head[rank]
        return rank

    for first, *others in links:
        for rank in others:
            head[root(rank)] = root(first)
    found: dict[int, list[int]] = {}
    for rank in head:
        found.setdefault(root(rank), []).append(rank)
    return tuple(np.array(ranks) for ranks in found.values())
