"""The last per cent: whole sequences of the latest ranks and of those with time left, dealt anew by a solver."""

from __future__ import annotations

import numpy as np
from ortools.sat.python import cp_model

from fourfold.passes.batch.grid.grid import Grid

MOST, RANKS, CELLS = 48, 6, 24
"""Sequences, ranks and cells of one core: what a solver improves in a moment."""
LIMIT = 0.05
"""Of the solver's deterministic time for one core: a few tenths of a second."""
GAP = 0.001
TIMES = 3
"""Cores solved one after the other."""
TICK = 1e-6


def polish(grid: Grid, *, goal: float) -> None:
    """Solves cores for as long as one makes the placement faster."""
    for _ in range(TIMES):
        before, state = grid.makespan, grid.state()
        if before <= goal and not grid.offloads:
            return
        cells = _cells(grid)
        if len(cells) < 2 or not _solved(grid, cells):
            return
        grid.rebuilt()
        if grid.makespan >= before:
            grid.restore(state)
            return


def _cells(grid: Grid) -> list[tuple[int, int]]:
    """Cells of the core: of the micro-step that wastes most, or of the latest ranks, and of those with time left."""
    used = (grid.room < grid.terms.bounds.capacity) & (grid.room >= 0)
    if grid.in_step:
        step = int((grid.heights * grid.shape[1] - grid.own.sum(axis=1)).argmax())
        order = np.argsort(-grid.own[step], kind="stable").tolist()
        return [(step, rank) for rank in _ends(order) if used[step, rank]]
    ranks = _ends(np.argsort(-grid.ends, kind="stable").tolist())
    alone = np.array([np.bincount(row, minlength=grid.shape[1]) for row in grid.label])
    found = [(step, rank) for rank in ranks for step in range(grid.shape[0]) if used[step, rank]]
    return [(step, rank) for step, rank in found if alone[step, grid.label[step, rank]] == 1][:CELLS]


def _ends(order: list[int]) -> list[int]:
    """The first of an order and the last."""
    few = min(len(order), RANKS)
    return [*order[: few // 2], *order[len(order) - (few - few // 2) :]]


def _solved(grid: Grid, cells: list[tuple[int, int]]) -> bool:
    """Deals whole sequences of these cells so that the latest of their ranks ends as early as can be.

    Minimises C subject to: each sequence in one cell; room of cells; seconds of each rank at most C, in microseconds;
    and the area cut: all their seconds at most ranks x C, which follows and which the solver would not find.
    """
    movable = [i for cell in cells for i in np.flatnonzero((grid.ranks == 1) & _here(grid, cell)).tolist()]
    movable = sorted(movable, key=lambda i: (-grid.seconds[i], i))[:MOST]
    model = cp_model.CpModel()
    at = {(i, c): model.new_bool_var("") for i in movable for c in range(len(cells))}
    for i in movable:
        model.add_exactly_one(at[i, c] for c in range(len(cells)))
    ranks = sorted({rank for _, rank in cells})
    ticks = {i: round(float(grid.seconds[i]) / TICK) for i in movable}
    latest, loads = _latest(grid, ranks, cells), {}
    most = grid.own[cells[0][0], ranks].max() if grid.in_step else latest.max()
    makespan = model.new_int_var(0, round(most / TICK) + 1, "")
    for rank, whole in zip(ranks, latest.tolist(), strict=True):
        own = [c for c, cell in enumerate(cells) if cell[1] == rank]
        kept = whole - sum(grid.seconds[i] for i in movable if grid.first[i] == rank)
        loads[rank] = round(kept / TICK) + sum(ticks[i] * at[i, c] for i in movable for c in own)
        model.add(loads[rank] <= makespan)
    model.add(sum(loads.values()) <= len(ranks) * makespan)
    for c, (step, rank) in enumerate(cells if grid.in_step else ()):
        beside = {i: ticks[i] - round(float(grid.filling[i]) / TICK) for i in movable}
        kept = grid.own[step, rank] - max(0.0, -grid.spare[step, rank])
        fixed = round(kept / TICK) - sum(beside[i] for i in movable if _is(grid, i, cells[c]))
        model.add(fixed + sum(beside[i] * at[i, c] for i in movable) <= makespan)
    for c, (step, rank) in enumerate(cells):
        free = int(grid.room[step, rank]) + sum(int(grid.tokens[i]) for i in movable if _is(grid, i, cells[c]))
        model.add(sum(int(grid.tokens[i]) * at[i, c] for i in movable) <= free)
    for (i, c), chosen in at.items():
        model.add_hint(chosen, _is(grid, i, cells[c]))
    model.minimize(makespan)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers, solver.parameters.random_seed = 1, 0
    solver.parameters.max_deterministic_time, solver.parameters.relative_gap_limit = LIMIT, GAP
    if solver.solve(model) not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return False
    for (i, c), chosen in at.items():
        if solver.value(chosen):
            grid.step[i], grid.first[i] = cells[c]
    return True


def _latest(grid: Grid, ranks: list[int], cells: list[tuple[int, int]]) -> np.ndarray:
    """Seconds of each rank: of its one cell, were its waits filled, or until it ends."""
    if not grid.in_step:
        return grid.ends[ranks]
    here = cells[0][0], ranks
    found: np.ndarray = grid.own[here] - np.maximum(0.0, grid.spare[here])
    return found


def _here(grid: Grid, cell: tuple[int, int]) -> np.ndarray:
    found: np.ndarray = (grid.step == cell[0]) & (grid.first == cell[1])
    return found


def _is(grid: Grid, i: int, cell: tuple[int, int]) -> bool:
    return bool((grid.step[i], grid.first[i]) == cell)
