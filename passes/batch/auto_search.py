"""Placements made from nothing, and made better: what is critical is taken out and placed anew."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from random import Random

import numpy as np

from fourfold.passes.batch.auto_grid import Choice, Grid
from fourfold.passes.batch.terms import Terms

SPENT = (0.0, 0.05, 0.25)
"""Shares of the least work that a sequence may spend beside it on more ranks, where its number is fixed beforehand."""
HEIGHTS = ((0.03, 0.0), (0.08, 0.5), (-0.5, 0.0))
"""Heights that a first placement should keep: how far their sum is above the bound, and how much the first is above
the last, as a share of their mean."""
WORK = 60_000_000
"""Cells looked at in all, the measure of the search: it ends after as many, however fast the machine."""
OVERHEAD = 3_000
"""Cells in whose time one look at a small grid is set up."""


def constructed(lengths: Sequence[int], terms: Terms, least: float, *, goal: float) -> list[Grid]:
    """First placements, the fastest first."""
    spent, found = 0, []
    for choice, rounds, height in _tried(tuple(lengths), terms, least):
        grid = filled(choice, rounds, height)
        spent += len(lengths) * (rounds * terms.bounds.ranks + OVERHEAD)
        if grid is not None:
            found.append(grid)
        if spent > WORK or (grid is not None and grid.makespan <= goal):
            break
    return sorted(found, key=lambda grid: grid.makespan)


def _tried(lengths: tuple[int, ...], terms: Terms, least: float) -> Iterator[tuple[Choice, int, np.ndarray]]:
    """Ways of sequences, micro-steps and their heights: one of each kind first, as the search may end early."""
    bounds = terms.bounds
    fewest = max(1, -(-sum(lengths) // (bounds.ranks * bounds.capacity)))
    fixed = {spent: Choice(lengths, terms, least, spent) for spent in SPENT}
    for above, shape in HEIGHTS:
        for more, share in ((1, 1.0), (0, 1.0), (1, 0.3), (2, 1.0)):
            rounds = fewest + more
            limit = share * (least / rounds if bounds.zero > 1 else least / 3)
            yield Choice(lengths, terms, limit), rounds, heights(rounds, (1 + above) * least, shape)
        for spent in fixed if above == HEIGHTS[0][0] else ():
            for more in (1, 0):
                yield fixed[spent], fewest + more, np.zeros(fewest + more)


def heights(rounds: int, total: float, shape: float) -> np.ndarray:
    """Seconds of each micro-step that come to `total`, the first highest."""
    share = 1.0 + shape * (np.linspace(0.5, -0.5, rounds) if rounds > 1 else np.zeros(1))
    return share * total / share.sum()


def filled(choice: Choice, rounds: int, height: np.ndarray) -> Grid | None:
    """Each sequence where it costs least beyond the heights; None where one finds no room."""
    grid = Grid(choice, rounds)
    target = 0.0 if grid.in_step else float(height.sum())
    if grid.in_step:
        grid.heights = height.copy()
    for i in choice.order:
        if not grid.put(i, target):
            return None
    grid.rebuilt()
    return grid


def improved(grids: Sequence[Grid], least: float, *, goal: float) -> list[Grid]:
    """The best of them, each made better as long as its share of the work lasts."""
    return [_improved(grid, goal) for grid in sorted(grids, key=lambda one: one.makespan)[:2]]


def _improved(grid: Grid, goal: float) -> Grid:
    random, spent, best, state = Random(0), 0, grid.makespan, grid.state()
    each = grid.own.size + OVERHEAD
    while spent < WORK / 4 and best > goal:
        out = _critical(grid, random)
        grid.remove(out)
        target = 0.0 if grid.in_step else best * 0.999
        places = [i for i in grid.choice.order if grid.step[i] < 0] if len(out) > 400 else _sorted(grid, out)
        done = all(grid.put(i, target) for i in places)
        spent += (len(out) + 10) * each
        if done and grid.makespan <= best:
            best, state = grid.makespan, grid.state()
        else:
            grid.restore(state)
    return grid


def _sorted(grid: Grid, out: Sequence[int]) -> list[int]:
    ways, lengths = grid.choice.of, grid.choice.lengths
    return sorted(out, key=lambda i: (-ways[lengths[i]][0].ranks * ways[lengths[i]][0].seconds, i))


def _critical(grid: Grid, random: Random) -> list[int]:
    """What is taken out: what runs on the slowest rank of a micro-step, or of all, and on some others."""
    rounds, ranks = grid.shape
    few = min(ranks, random.choice((2, 4, 8)))
    if grid.in_step:
        step = random.choices(range(rounds), weights=(grid.heights * ranks - grid.own.sum(axis=1) + 1e-9).tolist())[0]
        cells = {(step, int(grid.own[step].argmax()))}
        cells |= {(random.randrange(rounds), random.randrange(ranks)) for _ in range(few)}
        return sorted({i for cell in cells for i in _in(grid, *cell)})
    chosen = {int(grid.ends.argmax()), int(grid.ends.argmin()), *(random.randrange(ranks) for _ in range(few))}
    return sorted({i for rank in chosen for i in _on(grid, rank)})


def _in(grid: Grid, step: int, rank: int) -> Iterator[int]:
    here = (grid.step == step) & (grid.first <= rank) & (rank < grid.first + grid.ranks)
    return iter(np.flatnonzero(here).tolist())


def _on(grid: Grid, rank: int) -> Iterator[int]:
    here = (grid.first <= rank) & (rank < grid.first + grid.ranks)
    return iter(np.flatnonzero(here).tolist())
