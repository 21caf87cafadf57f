"""The fastest placement found: degree, method and place of each sequence at once, short ones beside long ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from fourfold.hardware.errors import InfeasibleError
from fourfold.ir.batch import BatchPlan, Piece
from fourfold.passes.batch.grid.grid import Choice, Grid, option
from fourfold.passes.batch.grid.polish import polish
from fourfold.passes.batch.grid.search import constructed, improved
from fourfold.passes.batch.placing.hosting import hosted, widths
from fourfold.passes.batch.placing.remap import remapped
from fourfold.passes.batch.timing.bounding import bound
from fourfold.passes.batch.timing.refusal import require
from fourfold.passes.batch.timing.terms import Terms
from fourfold.passes.batch.timing.timing import timed

Policy = Callable[[Sequence[int], Terms], BatchPlan]
Finish = Callable[[BatchPlan, Terms], BatchPlan]

FINISHES: tuple[Finish, ...] = (remapped,)
"""What may make a finished placement faster, in turn; kept where it does."""
FINISHED = 2
"""Placements that are finished, the fastest."""
CLOSE = 0.002
"""A gap to the bound at which nothing more is tried."""


def auto(lengths: Sequence[int], terms: Terms, starts: Sequence[Policy] = (), gap: float = CLOSE) -> BatchPlan:
    """The fastest of many placements, improved; never slower than what one of the `starts` finds.

    A first placement gives each sequence, the one with most work first, the ranks and the place that cost least beyond
    a height that all should keep; several heights are tried. The best, and what the starts found, are improved by
    taking out what is critical and placing it anew, and by a solver, until it is within `gap` of the bound or a fixed
    measure of work is done. Where that leaves a gap, the same is tried with micro-steps beyond the room of ranks, what
    is over waiting in the host's memory, and with all ranks in step. Raises InfeasibleError for what the pool cannot
    hold.
    """
    require(lengths, terms.bounds.ranks, terms, policy="auto")
    goal = (1 + gap) * bound(lengths, terms)
    found = [_timed(batch, terms) for batch in _started(lengths, terms, starts)]
    for frame in _frames(lengths, terms):
        first = sorted(found, key=_seconds)[:1] if frame is terms else ()
        batches = _searched(lengths, frame, terms, [batch for _, batch in first], gap)
        found += [_timed(batch, terms) for batch in batches]
        if min(found, key=_seconds)[0] <= terms.once + goal:
            break
    best = min(found, key=_seconds)
    for seconds, batch in sorted(found, key=_seconds)[:FINISHED] if best[0] > terms.once + goal else ():
        one = seconds, batch
        for finish in FINISHES:
            one = min(one, _timed(finish(one[1], terms), terms), key=_seconds)
        best = min(best, one, key=_seconds)
    return replace(best[1], policy="auto")


def _timed(batch: BatchPlan, terms: Terms) -> tuple[float, BatchPlan]:
    return timed(batch, terms).seconds, batch


def _seconds(one: tuple[float, BatchPlan]) -> float:
    return one[0]


def _started(lengths: Sequence[int], terms: Terms, starts: Sequence[Policy]) -> Iterator[BatchPlan]:
    for start in starts:
        try:
            yield start(lengths, terms)
        except InfeasibleError:
            continue


def _frames(lengths: Sequence[int], terms: Terms) -> Iterator[Terms]:
    """The terms, then those of wider micro-steps, and of ranks that go in step where they need not; for a batch that
    fits into one micro-step these would change little."""
    yield terms
    if sum(lengths) <= terms.bounds.ranks * terms.bounds.capacity:
        return
    wider = [replace(terms.bounds, capacity=capacity) for capacity in widths(terms)]
    in_step = [replace(bounds, zero=3) for bounds in wider[-1:] if bounds.zero <= 1]
    yield from map(terms.within, wider + in_step)


def _searched(
    lengths: Sequence[int], frame: Terms, terms: Terms, starts: Sequence[BatchPlan], gap: float
) -> Iterator[BatchPlan]:
    """The best placement made from nothing in a frame, or from the starts."""
    least = bound(lengths, terms, offloaded=frame is not terms)
    goal = (1 + gap) * least
    grids = constructed(lengths, frame, least, goal=goal)
    grids += [grid for batch in starts if (grid := read(batch, terms, least)) is not None]
    for grid in improved(grids, goal=goal)[:1]:
        polish(grid, goal=goal)
        yield _batch(grid, terms)


def _batch(grid: Grid, terms: Terms) -> BatchPlan:
    """A placement as pieces, without micro-steps that nobody runs; what ranks have no room for waits in the host's
    memory."""
    lengths = grid.choice.lengths
    used = {step: at for at, step in enumerate(sorted(set(grid.step.tolist())))}
    places = zip(grid.step.tolist(), grid.first.tolist(), grid.ranks.tolist(), strict=True)
    pieces = tuple(
        Piece(i, 0, lengths[i], used[step], tuple(range(first, first + n)), _method(lengths[i], n, first, terms))
        for i, (step, first, n) in enumerate(places)
    )
    offloads = tuple(replace(one, micro_step=used[one.micro_step]) for one in grid.offloads)
    bounds = terms.bounds
    return hosted(BatchPlan("auto", lengths, bounds.ranks, bounds.capacity, pieces, offloads=offloads), terms)


def _method(length: int, ranks: int, first: int, terms: Terms) -> str:
    """The fastest; a ring where ranks begin inside a node and leave it, as prices of other methods do not know that."""
    inside = ranks <= terms.node or first % terms.node == 0
    return terms.fastest(length, ranks)[1] if inside else "ring"


def read(batch: BatchPlan, terms: Terms, least: float) -> Grid | None:
    """A placement as a grid; None where it says more than a grid can."""
    whole = len(batch.pieces) == len(batch.lengths) and not batch.moves
    if not whole or any(piece.ranks[-1] - piece.ranks[0] + 1 != len(piece.ranks) for piece in batch.pieces):
        return None
    grid = Grid(Choice(batch.lengths, terms, least), batch.micro_steps)
    for piece in batch.pieces:
        n, i = len(piece.ranks), piece.sequence
        grid.step[i], grid.first[i], grid.ranks[i] = piece.micro_step, piece.ranks[0], n
        way = option(piece.tokens, n, terms)
        grid.seconds[i], grid.tokens[i], grid.filling[i] = way.seconds, way.tokens, way.filling
    grid.offloads = batch.offloads
    grid.rebuilt()
    return grid
