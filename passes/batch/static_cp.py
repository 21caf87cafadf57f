"""Static context parallelism: one degree for every sequence, whatever its length."""

from __future__ import annotations

from collections.abc import Sequence

from fourfold.ir.batch import BatchPlan
from fourfold.passes.batch.pack import packs
from fourfold.passes.batch.placing.gangs import placed
from fourfold.passes.batch.timing.refusal import require, room
from fourfold.passes.batch.timing.terms import Terms
from fourfold.passes.batch.timing.timing import timed


def static_cp(lengths: Sequence[int], terms: Terms) -> BatchPlan:
    """All on the smallest degree, a divisor of the pool, whose ranks hold the longest sequence.

    Raises InfeasibleError for a sequence longer than the pool holds.
    """
    ranks = terms.bounds.ranks
    require(lengths, ranks, terms, policy="static_cp")
    return alike(lengths, least(lengths, terms), terms, policy="static_cp")


def homogeneous(lengths: Sequence[int], terms: Terms) -> BatchPlan:
    """All on the one degree that is fastest for this batch. Source: FlexSP's BatchAda (arXiv 2412.01523, 6.1).

    Raises InfeasibleError for a sequence longer than the pool holds.
    """
    require(lengths, terms.bounds.ranks, terms, policy="homogeneous")
    first = least(lengths, terms)
    tried = [alike(lengths, n, terms, policy="homogeneous") for n in divisors(terms.bounds.ranks) if n >= first]
    return min(tried, key=lambda batch: timed(batch, terms).seconds)


def least(lengths: Sequence[int], terms: Terms) -> int:
    """The smallest degree that holds the longest sequence."""
    return next(n for n in divisors(terms.bounds.ranks) if room(n, terms) >= max(lengths))


def alike(lengths: Sequence[int], degree: int, terms: Terms, *, policy: str) -> BatchPlan:
    """Every sequence on `degree` ranks, packed with others."""
    groups = terms.bounds.ranks // degree
    return placed(packs(dict(enumerate(lengths)), degree, groups, terms), lengths, terms, policy=policy)


def divisors(ranks: int) -> list[int]:
    """Degrees that leave no rank over."""
    return [n for n in range(1, ranks + 1) if ranks % n == 0]
