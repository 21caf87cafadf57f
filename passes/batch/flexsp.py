"""Groups of unlike degrees side by side: long sequences on wide ones, short ones on narrow, anew each micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fourfold.ir.batch import BatchPlan, Piece
from fourfold.passes.batch.grouping.blaster import blasted
from fourfold.passes.batch.grouping.group_counts import NEAR, recounted
from fourfold.passes.batch.grouping.grouping import Groups, Offer, grouped
from fourfold.passes.batch.timing.refusal import require
from fourfold.passes.batch.timing.terms import Terms

MORE = 5
"""Numbers of micro-batches that are tried, from the fewest that hold the batch."""

CLOSE = 0.005
"""Gap to its bound at which no other groups are looked for."""

TRIES = 120
"""Choices of groups that a micro-batch may try."""

PLACES = 60_000
"""Sequences that are placed, in all choices, for one number of micro-batches; the fewer choices, the more of them."""

EFFORT = 0.1
"""Deterministic time that the solver has for a micro-batch."""

SOLVED = 4
"""Micro-batches that are solved: those furthest above their bounds."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Micro-batches of a batch sorted by length, the groups of each, and seconds of all."""

    runs: tuple[range, ...]
    groups: tuple[Groups, ...]

    @property
    def seconds(self) -> float:
        """One micro-batch after the other: all ranks go in step."""
        return sum(one.seconds for one in self.groups)


def flexsp(lengths: Sequence[int], terms: Terms, *, effort: float = EFFORT, narrowest: int = 1) -> BatchPlan:
    """Micro-batches of like lengths; in each, groups of 1, 2, 4, .. neighbours that exchange heads, as suits it best.

    Decides: how many micro-batches, the degrees of each one's groups, the sequences of each group. Given: what a
    sequence takes on each degree. Minimises: the sum over micro-batches of their slowest group. Subject to: the tokens
    that a rank holds. `effort` is the solver's deterministic time for one micro-batch; 0 leaves it out. `narrowest`
    is the least ranks of a group, a power of two: 2 in its public code. One of more ranks than heads shares by a ring.
    Source: FlexSP (arXiv 2412.01523, algorithm 1), which solves each micro-batch of each number of them: here all are
    searched, and the worst of the best number are solved. Raises InfeasibleError for what no group holds.
    """
    offer = Offer(terms, narrowest)
    widest = max(offer.degrees, key=lambda degree: offer.rooms[offer.degrees.index(degree)])
    require(lengths, widest, terms, policy="flexsp")
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    each = [lengths[i] for i in order]
    found = _solved(_searched(each, offer), each, offer, effort) if effort else _searched(each, offer)
    pieces = []
    for step, (run, groups) in enumerate(zip(found.runs, found.groups, strict=True)):
        own = [Piece(order[i], 0, each[i], step, ranks, method) for i, ranks, method in _seated(run, groups, offer)]
        pieces += own
    return BatchPlan("flexsp", tuple(lengths), terms.bounds.ranks, terms.bounds.capacity, tuple(pieces))


def _searched(each: Sequence[int], offer: Offer) -> Cut:
    """The fastest number of micro-batches, and more of them while none has room; one a sequence always has."""
    fewest = -(-sum(each) // (offer.terms.bounds.ranks * offer.terms.bounds.capacity))
    best: Cut | None = None
    tried: tuple[range, ...] = ()
    count, last = fewest, fewest + MORE - 1
    while count <= last or best is None:
        runs = blasted(each, count)
        if runs != tried:
            tried = runs
            best = _cut(each, runs, offer, best)
        count += 1 if count < last else max(1, count // 8)
    return best


def _cut(each: Sequence[int], runs: tuple[range, ...], offer: Offer, best: Cut | None) -> Cut | None:
    """These micro-batches with their groups, if faster than the best known, which is returned otherwise."""
    left = sum(offer.bound([each[i] for i in run]) for run in runs)
    tries = max(len(offer.degrees), min(TRIES, PLACES // len(each)))
    found, taken = [], 0.0
    for run in runs:
        own = [each[i] for i in run]
        if best is not None and taken + left >= best.seconds:
            return best
        groups = grouped(own, offer, tries=tries, close=CLOSE)
        if groups is None:
            return best
        found.append(groups)
        left -= offer.bound(own)
        taken += groups.seconds
    return Cut(runs, tuple(found)) if best is None or taken < best.seconds else best


def _solved(cut: Cut, each: Sequence[int], offer: Offer, effort: float) -> Cut:
    """With better groups where a micro-batch is far enough above its bound for the solver to know better ones."""
    bounds = [offer.bound([each[i] for i in run]) for run in cut.runs]
    groups = list(cut.groups)
    far = [at for at, one in enumerate(groups) if one.seconds > (1 + NEAR) * bounds[at]]
    for at in sorted(far, key=lambda at: bounds[at] - groups[at].seconds)[:SOLVED]:
        groups[at] = recounted([each[i] for i in cut.runs[at]], offer, groups[at], effort=effort)
    return replace(cut, groups=tuple(groups))


def _seated(run: range, groups: Groups, offer: Offer) -> list[tuple[int, tuple[int, ...], str]]:
    """(place in the sorted batch, ranks, method) of each sequence of a micro-batch."""
    seats = offer.seats(groups.counts)
    assert seats is not None
    wide = [k for k in range(len(groups.counts) - 1, -1, -1) for _ in range(groups.counts[k])]
    found = []
    for first, k, held in zip(seats, wide, groups.members, strict=True):
        degree = offer.degrees[k]
        ranks = tuple(range(first, first + degree))
        found += [(run[i], ranks, offer.method(degree)) for i in held]
    return found
