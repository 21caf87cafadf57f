"""Packing: every sequence whole on one rank, the trivial placement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fourfold.ir.batch import BatchPlan
from fourfold.passes.batch.placing.gangs import Task, placed
from fourfold.passes.batch.placing.packing import evened
from fourfold.passes.batch.timing.refusal import require, room
from fourfold.passes.batch.timing.terms import Terms


def pack(lengths: Sequence[int], terms: Terms) -> BatchPlan:
    """Bins of one rank's capacity, in as few rounds of all ranks as hold them, even in time.

    Source: best-fit packing. Raises InfeasibleError for a sequence longer than a rank holds.
    """
    require(lengths, 1, terms, policy="pack")
    return placed(packs(dict(enumerate(lengths)), 1, terms.bounds.ranks, terms), lengths, terms, policy="pack")


def packs(lengths: Mapping[int, int], ranks: int, slots: int, terms: Terms, *, taken: int = 0) -> list[Task]:
    """Sequences in bins that `ranks` neighbours run together: `slots` such groups at once, some `taken`."""
    work = {i: terms.task(length, ranks) for i, length in lengths.items()}
    found = []
    for held in evened(lengths, work, room(ranks, terms), slots, taken=taken):
        method = _method([lengths[i] for i in held], ranks, terms)
        seconds = terms.fixed + sum(work[i] for i in held)
        found.append(Task(tuple((i, 0, lengths[i]) for i in held), ranks, method, seconds))
    return found


def _method(lengths: Sequence[int], ranks: int, terms: Terms) -> str:
    """The method that is fastest for the longest of them: it has most of the attention."""
    return terms.fastest(max(lengths), ranks)[1]
