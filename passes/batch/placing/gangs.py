"""Tasks that need several ranks at once, placed over time: which ranks, which micro-step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fourfold.ir.batch import BatchPlan, Piece
from fourfold.passes.batch.timing.terms import Terms


@dataclass(frozen=True, slots=True)
class Task:
    """What `ranks` neighbours run in one micro-step: sequences (or stretches of them), the method, its seconds."""

    stretches: tuple[tuple[int, int, int], ...]
    ranks: int
    method: str
    seconds: float

    def at(self, first: int, step: int) -> Iterator[Piece]:
        """Its pieces on neighbours from rank `first` in a micro-step."""
        ranks = tuple(range(first, first + self.ranks))
        return (Piece(i, start, stop, step, ranks, self.method) for i, start, stop in self.stretches)


def placed(tasks: Sequence[Task], lengths: Sequence[int], terms: Terms, *, policy: str) -> BatchPlan:
    """Every task on neighbours: those with least to do, or in rounds where all ranks go in step (ZeRO 2 and 3).

    Widest first, then longest. Neighbours lie in one node where they fit in one, and begin at one where they do not.
    Source: list scheduling; contiguous ranks cost next to nothing against any ranks.
    """
    bounds = terms.bounds
    order = sorted(tasks, key=lambda task: (-task.ranks, -task.seconds, task.stretches))
    where = _in_rounds(order, terms) if bounds.zero > 1 else least_loaded(order, terms).places
    pieces = tuple(piece for task, (first, step) in zip(order, where, strict=True) for piece in task.at(first, step))
    return BatchPlan(policy, tuple(lengths), bounds.ranks, bounds.capacity, pieces)


@dataclass(frozen=True, slots=True)
class Ganged:
    """Places of tasks as (first rank, micro-step); then each rank's seconds, and its next micro-step.

    waits: seconds of a rank before it begins a micro-step with others, by (rank, micro-step).
    """

    places: list[tuple[int, int]]
    loads: np.ndarray
    following: np.ndarray
    waits: dict[tuple[int, int], float]


def least_loaded(tasks: Sequence[Task], terms: Terms, *, across: bool = False) -> Ganged:
    """Each where it can begin soonest, in this order, each rank one task a micro-step.

    across: those of more ranks than a node has may begin inside one, as rings may, each of whose ranks sends to one.
    """
    loads, following = np.zeros(terms.bounds.ranks), np.zeros(terms.bounds.ranks, dtype=int)
    found: list[tuple[int, int]] = []
    waits: dict[tuple[int, int], float] = {}
    for task in tasks:
        free = across and task.ranks > terms.node
        starts = np.arange(terms.bounds.ranks - task.ranks + 1) if free else neighbours(task.ranks, terms)
        windows = np.lib.stride_tricks.sliding_window_view(loads, task.ranks)[starts].max(axis=1)
        first = int(starts[int(np.argmin(windows))])
        here = slice(first, first + task.ranks)
        step, begun = int(following[here].max()), loads[here].max()
        waits |= {
            (rank, step): float(begun - loads[rank]) for rank in range(here.start, here.stop) if loads[rank] < begun
        }
        loads[here], following[here] = loads[here].max() + task.seconds, step + 1
        found.append((first, step))
    return Ganged(found, loads, following, waits)


def _in_rounds(tasks: Sequence[Task], terms: Terms) -> list[tuple[int, int]]:
    """(first rank, micro-step) of each: rounds hold tasks of like seconds, as the longest holds up all."""
    by_time = sorted(range(len(tasks)), key=lambda i: -tasks[i].seconds)
    rounds: list[np.ndarray] = []
    found = [(0, 0)] * len(tasks)
    opened = 0
    for i in by_time:
        starts = neighbours(tasks[i].ranks, terms)
        for step in range(opened, len(rounds) + 1):
            if step == len(rounds):
                rounds.append(np.zeros(terms.bounds.ranks, dtype=bool))
            busy = np.lib.stride_tricks.sliding_window_view(rounds[step], tasks[i].ranks)[starts].any(axis=1)
            if not busy.all():
                first = int(starts[int(np.argmin(busy))])
                rounds[step][first : first + tasks[i].ranks] = True
                found[i] = (first, step)
                break
        while opened < len(rounds) and rounds[opened].all():
            opened += 1
    return found


def neighbours(ranks: int, terms: Terms) -> np.ndarray:
    """First ranks of `ranks` neighbours: inside a node, or from the beginning of one."""
    last, node = terms.bounds.ranks - ranks, terms.node
    if ranks == 1 or node >= terms.bounds.ranks:
        return np.arange(last + 1)
    every = np.arange(last + 1)
    kept = every[every % node + ranks <= node] if ranks <= node else every[every % node == 0]
    return kept if len(kept) else every
