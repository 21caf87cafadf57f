"""A placement drawn: what each rank of the pool runs when, by sequence, on the clock that prices the placement."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fourfold.ir.batch import BatchPlan, Piece, Team
from fourfold.ir.chart import COMPUTE, Bar, Chart, Look
from fourfold.passes.batch.orders import again
from fourfold.passes.batch.terms import Terms
from fourfold.passes.batch.timing import attention, joined

COLOURS = (
    *("#4c78a8", "#f58518", "#54a24b", "#e45756", "#72b7b2", "#eeca3b", "#b279a2", "#ff9da6"),
    *("#9d755d", "#1f4e79", "#b5651d", "#2e7d32", "#8e2a2b", "#2b8c8c", "#a88f00", "#6a3d9a"),
)
"""Of the longest sequences, in order; each has a letter, too."""
SHARED, PACKED, ONCE = "shared", "packed", "once"
REST: Mapping[str, Look] = {
    SHARED: Look("=", "others that share ranks", "#8c8c8c"),
    PACKED: Look("-", "others, packed", "#d0d0d0"),
    ONCE: Look("+", "once a step", "#4a4a4a"),
}
LONG = 2.0
"""Times the mean length from which on a sequence is drawn by itself, if its ranks run it alone and whole."""


@dataclass(frozen=True, slots=True)
class Step:
    """One micro-step: its own seconds on each rank that runs in it, and ranks that begin and finish it together."""

    number: int
    own: Mapping[int, float]
    together: Sequence[Sequence[int]]


def charted(batch: BatchPlan, terms: Terms) -> Chart:
    """The step as bars of each rank, as long as its price; what ranks wait for each other stays free."""
    looks = {**_letters(batch), **REST}
    teams: dict[tuple[int, int], list[Team]] = {}
    for team in batch.teams:
        for rank in team.ranks:
            teams.setdefault((rank, team.micro_step), []).append(team)
    parts = {id(team): tuple(_parts(team, batch.lengths, terms, looks)) for team in batch.teams}
    clock, bars = [0.0] * batch.ranks, list[Bar]()
    for step in steps(batch, terms):
        for ranks in step.together:
            start = max(clock[rank] for rank in ranks)
            for rank in ranks:
                here = [part for team in teams.get((rank, step.number), ()) for part in parts[id(team)]]
                bars += _bars(rank, step, here, start=start)
                clock[rank] = start + max(step.own.get(other, 0.0) for other in ranks)
    last = max(clock)
    every = {rank: f"rank {rank}" for rank in range(batch.ranks)}
    bars += [Bar(rank, COMPUTE, REST[ONCE].words, last, last + terms.once, ONCE) for rank in every]
    return Chart(batch.policy, tuple(bars), last + terms.once, every, looks)


def steps(batch: BatchPlan, terms: Terms) -> Iterator[Step]:
    """The micro-steps in order, as `timed` prices them."""
    twice = again(batch, terms.bounds.zero)
    found: dict[int, list[Team]] = {}
    for team in batch.teams:
        found.setdefault(team.micro_step, []).append(team)
    for number, teams in found.items():
        own: dict[int, float] = {}
        for team in teams:
            seconds = attention(team, terms)
            for rank in team.ranks:
                own[rank] = own.get(rank, 0.0) + seconds
        for rank in own:
            own[rank] += terms.fixed + terms.linear * batch.held[rank, number]
            own[rank] *= 1.0 + terms.forward * ((rank, number) in twice)
        yield Step(number, own, [range(batch.ranks)] if terms.bounds.zero > 1 else joined(teams))


def _letters(batch: BatchPlan) -> Mapping[str, Look]:
    """How the longest sequences are drawn, of those that are shared, cut in chunks or much longer than the mean."""
    chunks = Counter(piece.sequence for piece in batch.pieces)
    enough = LONG * sum(batch.lengths) / len(batch.lengths)
    found = {
        piece.sequence
        for piece in batch.pieces
        if len(piece.ranks) > 1 or chunks[piece.sequence] > 1 or batch.lengths[piece.sequence] >= enough
    }
    longest = sorted(found, key=lambda i: (-batch.lengths[i], i))[: len(COLOURS)]
    return {str(i): Look(chr(ord("A") + at), f"{i}:{batch.lengths[i]:,}", COLOURS[at]) for at, i in enumerate(longest)}


def _parts(
    team: Team, length: Sequence[int], terms: Terms, looks: Mapping[str, Look]
) -> Iterator[tuple[str, str, float]]:
    """Kind, name and seconds of what a rank of a team runs: the sequences drawn by themselves, then all others."""
    others, seconds = 0, 0.0
    for piece in team.pieces:
        own = _seconds(piece, team, terms)
        if str(piece.sequence) in looks:
            whole = piece.tokens == length[piece.sequence]
            yield str(piece.sequence), str(piece.sequence) if whole else str(piece), own
        else:
            others, seconds = others + 1, seconds + own
    if others:
        yield SHARED if len(team.ranks) > 1 else PACKED, f"{others} sequence{'s' * (others > 1)}", seconds


def _seconds(piece: Piece, team: Team, terms: Terms) -> float:
    """Of one piece on each rank of its team."""
    n = len(team.ranks)
    before = terms.shared(piece.start, n, team.method) if piece.start else 0.0
    return terms.shared(piece.stop, n, team.method) - before + terms.linear * piece.tokens / n


def _bars(rank: int, step: Step, parts: Sequence[tuple[str, str, float]], *, start: float) -> Iterator[Bar]:
    """What a rank runs of a micro-step, one after the other; what they have in common is dealt by their seconds."""
    whole = sum(seconds for _, _, seconds in parts)
    for kind, name, seconds in parts:
        stop = start + step.own[rank] * seconds / whole
        yield Bar(rank, COMPUTE, name, start, stop, kind, micro_step=step.number)
        start = stop
