"""A placement drawn: what each rank of the pool runs when, by sequence, on the clock that prices the placement."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from fourfold.ir.batch import BatchPlan, Piece, Team
from fourfold.ir.chart import COMPUTE, Bar, Chart, Look
from fourfold.passes.batch.timing.clock import stepped
from fourfold.passes.batch.timing.terms import Terms

COLOURS = (
    *("#4c78a8", "#f58518", "#54a24b", "#e45756", "#72b7b2", "#eeca3b", "#b279a2", "#ff9da6"),
    *("#9d755d", "#1f4e79", "#b5651d", "#2e7d32", "#8e2a2b", "#2b8c8c", "#a88f00", "#6a3d9a"),
)
"""Of the longest sequences, in order; each has a letter, too."""
SHARED, PACKED, FILL, ONCE = "shared", "packed", "fill", "once"
REST: Mapping[str, Look] = {
    SHARED: Look("=", "others that share ranks", "#8c8c8c"),
    PACKED: Look("-", "others, packed", "#d0d0d0"),
    FILL: Look("~", "the line of stages fills and drains", "#f3e3c3"),
    ONCE: Look("+", "once a step", "#4a4a4a"),
}
LONG = 2.0
"""Times the mean length from which on a sequence is drawn by itself, if its ranks run it alone and whole."""


def charted(batch: BatchPlan, terms: Terms) -> Chart:
    """The step as bars of each rank, as long as its price; what ranks wait for each other stays free.

    Of a line of pipeline stages the slowest is drawn; what it takes to fill and to drain follows its micro-steps.
    """
    looks = {**_letters(batch), **REST}
    parts = _of_ranks(batch, terms, looks)
    clock, longest, bars = [0.0] * batch.ranks, [0.0] * batch.ranks, list[Bar]()
    numbers = dict.fromkeys(team.micro_step for team in batch.teams)
    for number, step in zip(numbers, stepped(batch, terms), strict=True):
        for group in step.joined:
            start = max(clock[rank] for rank in group)
            for rank in group:
                clock[rank] = start
        for rank, start in enumerate(clock):
            busy, lasts = (terms.slowest * float(each[rank]) for each in (step.busy, step.lasts))
            bars += _bars(rank, number, parts.get((rank, number), ()), start=start, stop=start + busy)
            clock[rank], longest[rank] = start + lasts, max(longest[rank], lasts)
    every = {rank: f"rank {rank}" for rank in range(batch.ranks)}
    filled = [start + (terms.stages - 1) * more for start, more in zip(clock, longest, strict=True)]
    last = max(filled)
    bars += [_end(FILL, rank, clock[rank], filled[rank]) for rank in every if filled[rank] > clock[rank]]
    bars += [_end(ONCE, rank, last, last + terms.once) for rank in every]
    return Chart(batch.policy, tuple(bars), last + terms.once, every, looks)


def _end(kind: str, rank: int, start: float, stop: float) -> Bar:
    return Bar(rank, COMPUTE, REST[kind].words, start, stop, kind)


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


def _of_ranks(
    batch: BatchPlan, terms: Terms, looks: Mapping[str, Look]
) -> Mapping[tuple[int, int], Sequence[tuple[str, str, float]]]:
    """What each rank runs in each micro-step, by (rank, micro-step): the parts of its teams."""
    found: dict[tuple[int, int], list[tuple[str, str, float]]] = {}
    for team in batch.teams:
        parts = list(_parts(team, batch.lengths, terms, looks))
        for rank in team.ranks:
            found.setdefault((rank, team.micro_step), []).extend(parts)
    return found


def _bars(rank: int, step: int, parts: Sequence[tuple[str, str, float]], *, start: float, stop: float) -> Iterator[Bar]:
    """What a rank runs of a micro-step, one after the other; what they have in common is dealt by their seconds."""
    whole, long = sum(seconds for _, _, seconds in parts), stop - start
    for kind, name, seconds in parts:
        stop = start + long * seconds / whole
        yield Bar(rank, COMPUTE, name, start, stop, kind, micro_step=step)
        start = stop
