"""Hybrid data parallelism: a sequence takes as many ranks as it fills, any number; short ones are packed on one."""

from __future__ import annotations

from collections.abc import Sequence

from fourfold.ir.batch import BatchPlan
from fourfold.passes.batch.gangs import Task, placed
from fourfold.passes.batch.pack import packs
from fourfold.passes.batch.refusal import SLACK, require, room
from fourfold.passes.batch.terms import Terms


def bytescale(lengths: Sequence[int], terms: Terms) -> BatchPlan:
    """Long sequences on ceil(length / capacity) ranks by a ring, the rest packed; ranks with light ones run more.

    Source: ByteScale (arXiv 2502.21231, algorithms 1 and 2), whose balance scheduler starts, as printed, with no rank
    to give to: here the least loaded take the widest first. Raises InfeasibleError for what the pool cannot hold.
    """
    require(lengths, terms.bounds.ranks, terms, policy="bytescale")
    short = {i: length for i, length in enumerate(lengths) if length <= room(1, terms)}
    tasks = [_alone(i, length, terms) for i, length in enumerate(lengths) if i not in short]
    taken = sum(task.ranks for task in tasks)
    tasks += packs(short, 1, terms.bounds.ranks, terms, taken=taken)
    return placed(tasks, lengths, terms, policy="bytescale")


def _alone(sequence: int, length: int, terms: Terms) -> Task:
    """A long sequence on as few ranks as hold it."""
    ranks = -(-length // (terms.bounds.capacity - SLACK))
    seconds = terms.fixed + terms.linear * length / ranks + terms.shared(length, ranks, "ring")
    return Task(((sequence, 0, length),), ranks, "ring", seconds)
