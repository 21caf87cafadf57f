"""Placements made from nothing, and made better: what is critical is taken out and placed anew."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

import numpy as np

from fourfold.passes.batch.grid.grid import Choice, Grid, Option
from fourfold.passes.batch.timing.terms import Terms

SPENT = (0.0, 0.05, 0.25)
"""Shares of the least work that a sequence may spend beside it on more ranks, where its number is fixed beforehand."""
HEIGHTS = ((0.03, 0.0), (0.08, 0.5), (-0.5, 0.0))
"""Heights that a first placement should keep: how far their sum is above the bound, and how much the first is above
the last, as a share of their mean."""
WORK, EACH = 80_000_000, 150_000
"""Cells looked at in all, and for each sequence, the measure of the search: it ends after as many, however fast the
machine."""
OVERHEAD, AGAIN = 3_000, 100
"""Cells in whose time one look at a small grid is set up, and in which the grid is set up again for each sequence."""
STARTS = 3
"""Placements that are improved."""
WHOLE, MOST, LOWER = 0.4, 300, 0.8
"""How often a whole micro-step is placed anew, if it holds no more sequences than that; the share of its height that
it should keep at least."""


def constructed(lengths: Sequence[int], terms: Terms, least: float, *, goal: float) -> list[Grid]:
    """First placements, the fastest first.

    Ranks that do not go in step use no more micro-steps than they need: with more to choose from they are placed alike.
    """
    spent, found = 0, []
    used: dict[tuple[float, float | None, float], int] = {}
    for choice, rounds, height in _tried(tuple(lengths), terms, least):
        way = choice.limit, choice.spent, round(float(height.sum()), 9)
        if rounds >= used.get(way, rounds + 1):
            continue
        grid = filled(choice, rounds, height)
        spent += len(lengths) * (rounds * terms.bounds.ranks + OVERHEAD)
        if grid is not None:
            found.append(grid)
            if not grid.in_step and grid.used < rounds:
                used[way] = grid.used
                grid.cut()
        if spent > WORK or (grid is not None and grid.makespan <= goal):
            break
    return sorted(found, key=lambda grid: grid.makespan)


def _tried(lengths: tuple[int, ...], terms: Terms, least: float) -> Iterator[tuple[Choice, int, np.ndarray]]:
    """Ways of sequences, micro-steps and their heights: one of each kind first, as the search may end early."""
    bounds = terms.bounds
    fewest = max(1, -(-sum(lengths) // (bounds.ranks * bounds.capacity)))
    known: dict[int, tuple[Option, ...]] = {}
    fixed = {spent: Choice(lengths, terms, least, spent, known) for spent in SPENT}
    for above, shape in HEIGHTS:
        for more, share in ((1, 1.0), (0, 1.0), (1, 0.3), (2, 1.0)):
            rounds = fewest + more
            limit = share * (least / rounds if bounds.zero > 1 else least / 3)
            yield Choice(lengths, terms, limit, known=known), rounds, heights(rounds, (1 + above) * least, shape)
        for spent in fixed if above == HEIGHTS[0][0] else ():
            for more in (1, 0):
                yield fixed[spent], fewest + more, np.zeros(fewest + more)


def heights(rounds: int, total: float, shape: float) -> np.ndarray:
    """Seconds of each micro-step that come to `total`, the first highest."""
    share: np.ndarray = 1.0 + shape * (np.linspace(0.5, -0.5, rounds) if rounds > 1 else np.zeros(1))
    share *= total / share.sum()
    return share


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


def improved(grids: Sequence[Grid], *, goal: float) -> list[Grid]:
    """The best that differ, each made better for a while; the best of them for as long as the work lasts."""
    best: dict[float, Grid] = {}
    for grid in sorted(grids, key=lambda one: (one.makespan, one.shape)):
        best.setdefault(round(grid.makespan, 9), grid)
    random, tried = Random(0), list(best.values())[:STARTS]
    work = min(WORK, EACH * max((len(grid.choice.lengths) for grid in tried), default=0))
    for grid in tried:
        improve(grid, random, work=work // 10, goal=goal)
    if tried:
        tried.sort(key=lambda grid: grid.makespan)
        improve(tried[0], random, work=work // 2, goal=goal)
    return tried


def improve(grid: Grid, random: Random, *, work: int, goal: float) -> None:
    """Takes out and places anew, and keeps what is not slower, until so many cells were looked at.

    The goal is that of placements that leave nothing to the host's memory; others go on.
    """
    spent, best, state = 0, grid.makespan, grid.state()
    each, goal = grid.own.size + OVERHEAD, 0.0 if grid.offloads else goal
    while spent < work and best > goal:
        out, target = _taken(grid, random), 0.0 if grid.in_step else best * 0.999
        done = all(grid.put(i, target) for i in _sorted(grid, out))
        grid.settle()
        spent += (len(out) + 10) * each + AGAIN * len(grid.choice.lengths)
        if done and grid.makespan <= best:
            best, state = grid.makespan, grid.state()
        else:
            grid.restore(state)
    grid.restore(state)


def _taken(grid: Grid, random: Random) -> list[int]:
    """What is taken out: what is critical, and something of what is not.

    Where ranks go in step, that is a micro-step that wastes most: some of its ranks or all. What comes back should keep
    a height a little below what it had.
    """
    if not grid.in_step:
        ranks = grid.shape[1]
        few = min(ranks, random.choice((2, 4, 8)))
        chosen = {int(grid.ends.argmax()), int(grid.ends.argmin()), *(random.randrange(ranks) for _ in range(few))}
        out = grid.movable(i for rank in chosen for i in _on(grid, rank))
        grid.remove(out)
        return out
    rounds, ranks = grid.shape
    wasted = grid.heights * ranks - grid.own.sum(axis=1)
    step = random.choices(range(rounds), weights=(wasted + 1e-9).tolist())[0]
    cells = {(step, int(grid.own[step].argmax()))}
    few = min(ranks, random.choice((2, 4, 8, 16)))
    cells |= {(random.choice((step, random.randrange(rounds))), random.randrange(ranks)) for _ in range(few)}
    out = grid.movable(i for cell in cells for i in _in(grid, *cell))
    if random.random() < WHOLE:
        here = np.flatnonzero(grid.step == step).tolist()
        out = grid.movable(here if len(here) <= MOST else [i for i in here if grid.ranks[i] > 1])
    high = grid.heights[step] * random.uniform(LOWER, 1.0)
    grid.remove(out)
    grid.heights[step] = max(grid.heights[step], high)
    return out


def _sorted(grid: Grid, out: Sequence[int]) -> list[int]:
    ways, lengths = grid.choice.of, grid.choice.lengths
    return sorted(out, key=lambda i: (-ways[lengths[i]][0].work, i))


def _in(grid: Grid, step: int, rank: int) -> Iterator[int]:
    here = (grid.step == step) & (grid.first <= rank) & (rank < grid.first + grid.ranks)
    return iter(np.flatnonzero(here).tolist())


def _on(grid: Grid, rank: int) -> Iterator[int]:
    here = (grid.first <= rank) & (rank < grid.first + grid.ranks)
    return iter(np.flatnonzero(here).tolist())
