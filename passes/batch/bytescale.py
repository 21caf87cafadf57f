"""Hybrid data parallelism: a sequence takes as many ranks as it fills, any number; short ones are packed on one."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import inf
from random import Random

from fourfold.ir.batch import BatchPlan, Piece
from fourfold.passes.batch.pack import packs
from fourfold.passes.batch.placing.gangs import Ganged, Task, least_loaded, placed
from fourfold.passes.batch.placing.hosting import hosted, share
from fourfold.passes.batch.placing.packing import packed, spread
from fourfold.passes.batch.timing.refusal import SLACK, require, room
from fourfold.passes.batch.timing.terms import Terms
from fourfold.passes.batch.timing.timing import timed

Deal = Callable[[Mapping[int, float], Ganged, Terms], Mapping[int, list[int]]]


ORDERS: tuple[Callable[[Task], tuple[float, ...]], ...] = (
    lambda task: (-task.ranks, -task.seconds, *task.stretches[0]),
    lambda task: (-task.seconds, -task.ranks, *task.stretches[0]),
    lambda task: (-task.seconds * task.ranks, *task.stretches[0]),
)
"""Of long sequences: the widest first, the slowest, those with most work."""


CELLS = 200_000
"""Ranks that are looked at for long sequences, in all orders that are tried."""
AGAIN = 10
"""Times that each of few long sequences is tried in each other's place."""

PARTS = (inf, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15)
"""Shares of the least step that a long sequence may take, where fewer ranks leave more to the host's memory."""

APART = 1 << 20
"""Numbers left between the micro-steps of long sequences, for those of short ones."""


def bytescale(lengths: Sequence[int], terms: Terms) -> BatchPlan:
    """Long sequences on the ranks that hold them, the rest packed; ranks with light ones run more.

    A long sequence that computes long enough to hide it leaves part of what it keeps to the host's memory, and so takes
    fewer ranks, where that takes less of all ranks' time, and no longer than several shares of the step. Source:
    ByteScale (arXiv 2502.21231, equation 3, algorithms 1 and 2), whose balance scheduler starts, as printed, with no
    rank to give to: here the least loaded take the widest first; and whose ranks form rings: here they share by the
    method that takes the least. Raises InfeasibleError for what the pool cannot hold.
    """
    require(lengths, terms.bounds.ranks, terms, policy="bytescale")
    least = {i: -(-n // (terms.bounds.capacity - SLACK)) for i, n in enumerate(lengths) if n > room(1, terms)}
    work = sum(terms.linear * n + terms.alone(n) for n in lengths) / terms.bounds.ranks
    choices = [least]
    for part in PARTS:
        fewer = {i: fewest(lengths[i], n, terms, most=part * work) for i, n in least.items()}
        choices += [fewer] * (fewer not in choices)
    tried = [placing for degrees in choices for placing in _placings(lengths, degrees, terms)]
    return min(tried, key=lambda batch: timed(batch, terms).seconds)


def fewest(length: int, ranks: int, terms: Terms, most: float = inf) -> int:
    """Ranks of a sequence that `ranks` hold: fewer where the host's memory, hidden by compute, makes that cheaper.

    Of s / D tokens on each of D ranks so much must go that the rest has room, and so much may as is written while the
    forward computes. Compute alone is counted: communication only hides more. Not so few that each computes for more
    than `most` seconds.
    """
    bounds, found = terms.bounds, ranks
    while bounds.spare and found > 1:
        tokens = -(-length // (found - 1)) + 1
        seconds = terms.fixed + terms.linear * tokens + terms.alone(length) / (found - 1)
        hidden = terms.forward * seconds * terms.host / (terms.kept * tokens)
        if seconds > most or share(tokens, terms) > min(bounds.spare, hidden):
            break
        found -= 1
    if found == 1 or found == ranks:
        return max(found, 2) if ranks > 1 else ranks
    one, other = (n * terms.task(length, n) for n in (found, ranks))
    return found if one < other else ranks


def _placings(lengths: Sequence[int], degrees: Mapping[int, int], terms: Terms) -> Iterator[BatchPlan]:
    """Placements with these numbers of ranks for long sequences: balanced for ranks alone, and for lines of stages."""
    tasks = [_alone(i, lengths[i], ranks, terms) for i, ranks in degrees.items()]
    short = {i: length for i, length in enumerate(lengths) if i not in degrees}
    if terms.bounds.zero > 1:
        taken = sum(task.ranks for task in tasks)
        tasks += packs(short, 1, terms.bounds.ranks, terms, taken=taken)
        yield hosted(placed(tasks, lengths, terms, policy="bytescale"), terms)
        return
    for deal in (evenly, by_class) if terms.stages > 1 else (evenly,):
        for order in (*(sorted(tasks, key=key) for key in ORDERS), _reordered(tasks, terms)):
            yield hosted(_dealt(order, short, lengths, terms, deal), terms)


def _reordered(tasks: Sequence[Task], terms: Terms) -> Sequence[Task]:
    """The order of long sequences that ends soonest, of many: one after the other goes elsewhere, and stays there if
    nothing then ends later."""
    random, best = Random(0), min((sorted(tasks, key=key) for key in ORDERS), key=lambda order: _ends(order, terms))
    many, ends = len(tasks), _ends(best, terms)
    for _ in range(min(CELLS // (many * terms.bounds.ranks), AGAIN * many**2) if many > 1 else 0):
        order = list(best)
        order.insert(random.randrange(many), order.pop(random.randrange(many)))
        found = _ends(order, terms)
        if found <= ends:
            best, ends = order, found
    return best


def _ends(tasks: Sequence[Task], terms: Terms) -> tuple[float, float]:
    """Seconds of the rank that ends last, and of all with what they wait."""
    loads = least_loaded(tasks, terms, across=True).loads
    return float(loads.max()), float(loads.sum())


def _alone(sequence: int, length: int, ranks: int, terms: Terms) -> Task:
    attention, method = terms.fastest(length, ranks)
    return Task(((sequence, 0, length),), ranks, method, terms.fixed + terms.linear * length / ranks + attention)


def _dealt(
    tasks: Sequence[Task], short: Mapping[int, int], lengths: Sequence[int], terms: Terms, deal: Deal
) -> BatchPlan:
    """Long ones in this order; short ones fill what ranks would wait, then each rank gets some, and packs them."""
    ganged, bounds = least_loaded(tasks, terms, across=True), terms.bounds
    pieces = [
        piece
        for task, (first, step) in zip(tasks, ganged.places, strict=True)
        for piece in task.at(first, (step + 1) * APART)
    ]
    work = {i: terms.task(n, 1) + terms.fixed * n / bounds.capacity for i, n in short.items()}
    waiting = filling(work, ganged, terms)
    taken = {i for mine in waiting.values() for i in mine}
    rest = {i: seconds for i, seconds in work.items() if i not in taken}
    dealt = {(rank, int(ganged.following[rank])): mine for rank, mine in deal(rest, ganged, terms).items()}
    for (rank, step), mine in (*waiting.items(), *dealt.items()):
        held = {i: short[i] for i in mine}
        least = packed(held, bounds.capacity)
        for at, some in enumerate(spread(held, work, len(least), bounds.capacity) or least, step * APART + 1):
            pieces += [Piece(i, 0, short[i], at, (rank,)) for i in some]
    used = {step: at for at, step in enumerate(sorted({piece.micro_step for piece in pieces}))}
    pieces = [replace(piece, micro_step=used[piece.micro_step]) for piece in pieces]
    return BatchPlan("bytescale", tuple(lengths), bounds.ranks, bounds.capacity, tuple(pieces))


def filling(work: Mapping[int, float], ganged: Ganged, terms: Terms) -> Mapping[tuple[int, int], list[int]]:
    """What ranks run while they would wait for others, by (rank, micro-step): the next longest where most time is left.

    What a micro-step costs beside its tokens is taken off the time.
    """
    heap = [(terms.fixed - seconds, key) for key, seconds in ganged.waits.items() if seconds > terms.fixed]
    heapq.heapify(heap)
    found: dict[tuple[int, int], list[int]] = {}
    for i in sorted(work, key=lambda i: (-work[i], i)):
        if heap and work[i] <= -heap[0][0]:
            left, key = heap[0]
            heapq.heapreplace(heap, (left + work[i], key))
            found.setdefault(key, []).append(i)
    return found


def evenly(work: Mapping[int, float], ganged: Ganged, terms: Terms) -> Mapping[int, list[int]]:
    """Balance of ranks: the next longest to the one that ends first, whatever number of micro-steps it then runs."""
    heap = [(load, rank) for rank, load in enumerate(ganged.loads.tolist())]
    heapq.heapify(heap)
    found: dict[int, list[int]] = {}
    for i in sorted(work, key=lambda i: (-work[i], i)):
        load, rank = heap[0]
        heapq.heapreplace(heap, (load + work[i], rank))
        found.setdefault(rank, []).append(i)
    return found


def by_class(work: Mapping[int, float], ganged: Ganged, terms: Terms) -> Mapping[int, list[int]]:
    """Balance of lines of stages: each line has its class of lengths, so that its micro-steps are alike; those with
    lighter ones run more. Lines that run long sequences go first."""
    order = sorted(range(terms.bounds.ranks), key=lambda rank: (-ganged.loads[rank], rank))
    left, loads, at = sum(work.values()) + float(ganged.loads.sum()), ganged.loads.tolist(), 0
    found: dict[int, list[int]] = {}
    for i in sorted(work, key=lambda i: (-work[i], i)):
        while at + 1 < len(order) and loads[order[at]] + work[i] / 2 > left / (len(order) - at):
            left -= loads[order[at]]
            at += 1
        loads[order[at]] += work[i]
        found.setdefault(order[at], []).append(i)
    return found
