"""Which groups, by a solver: how many of each degree, and how many sequences of each bucket on them (CP-SAT)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

from ortools.sat.python import cp_model

from fourfold.passes.batch.grouping.bucketing import Bucket, bucketed
from fourfold.passes.batch.grouping.grouping import Counts, Groups, Offer, dealt

UNITS = 2**14
"""Whole units of time in the seconds of the choice the search begins with."""

APART = 4
"""Groups of a degree that stay apart; where there may be more they are counted together."""

NEAR = 0.03
"""Gap to the bound at which the search ends."""


@dataclass(frozen=True, slots=True)
class Cohort:
    """At most `most` groups of one degree, by its place among the degrees, that take sequences together."""

    at: int
    most: int


def cohorts(offer: Offer) -> tuple[Cohort, ...]:
    """Widest first. Few groups of a degree are one each, which is exact; of many only their sum is known."""
    found = []
    for at in range(len(offer.degrees) - 1, -1, -1):
        most = offer.terms.bounds.ranks // offer.degrees[at]
        found += [Cohort(at, 1)] * most if most <= APART else [Cohort(at, most)]
    return tuple(found)


def recounted(lengths: Sequence[int], offer: Offer, start: Groups, *, effort: float) -> Groups:
    """Better groups than `start`, if CP-SAT finds some. Lengths descend.

    Decides: n_c groups of each cohort c, x_qc sequences of each bucket q on them. Minimises: the end C of the slowest.
    Subject to: sum_c x_qc = b_q; sum_c d_c n_c <= N; tokens_c <= n_c room_c; load_c <= n_c C, once for each value of
    n_c; t_qc <= C where x_qc > 0; the area cut sum_c d_c load_c <= N C, without which the bound says nothing; cohorts
    of one degree in descending order. Sequences of a cohort are dealt to its groups afterwards, as long as they are.
    `effort` is deterministic time: the same batch has the same groups everywhere. Source: FlexSP (arXiv 2412.01523,
    eq. 17-22), its virtual groups of a degree counted, not named.
    """
    buckets = bucketed(lengths, room=offer.terms.bounds.ranks * offer.terms.bounds.capacity)
    model = _Model(buckets, offer, start.seconds - offer.terms.fixed)
    model.build()
    model.hint(start, lengths)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.max_deterministic_time = effort
    solver.parameters.relative_gap_limit = NEAR
    if solver.solve(model.model) not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return start
    many = [solver.value(one) for one in model.many]
    given = [[solver.value(one) for one in row] for row in model.given]
    counts = _counts(many, model.cohorts, offer)
    if offer.seats(counts) is None:
        return start
    found = (start, _dealt(lengths, buckets, many, given, model.cohorts, offer), dealt(lengths, counts, offer))
    return min((one for one in found if one is not None), key=lambda one: one.seconds)


def _counts(many: Sequence[int], each: Sequence[Cohort], offer: Offer) -> Counts:
    return tuple(
        sum(n for n, cohort in zip(many, each, strict=True) if cohort.at == at) for at in range(len(offer.degrees))
    )


def _dealt(
    lengths: Sequence[int],
    buckets: Sequence[Bucket],
    many: Sequence[int],
    given: Sequence[Sequence[int]],
    each: Sequence[Cohort],
    offer: Offer,
) -> Groups | None:
    """What the solver gave each cohort, dealt to its groups; None where pieces do not fit together in one."""
    taken: list[list[int]] = [[] for _ in each]
    ends = list(accumulate((bucket.count for bucket in reversed(buckets)), initial=0))
    for (at, stop), row in zip(pairwise(ends), reversed(given), strict=True):
        where = [c for c, count in enumerate(row) for _ in range(count)]
        for i, c in zip(range(at, stop), where, strict=True):
            taken[c].append(i)
    members: list[tuple[int, ...]] = []
    seconds = 0.0
    for n, cohort, held in zip(many, each, taken, strict=True):
        if not n:
            continue
        own = tuple(n * (at == cohort.at) for at in range(len(offer.degrees)))
        found = dealt([lengths[i] for i in held], own, offer)
        if found is None:
            return None
        members += [tuple(held[i] for i in group) for group in found.members]
        seconds = max(seconds, found.seconds)
    return Groups(_counts(many, each, offer), tuple(members), seconds)


@dataclass(slots=True)
class _Model:
    """The CP-SAT model and its variables: the end, groups of each cohort, sequences of [bucket][cohort]."""

    buckets: Sequence[Bucket]
    offer: Offer
    seconds: float
    model: cp_model.CpModel = field(default_factory=cp_model.CpModel)
    cohorts: tuple[Cohort, ...] = ()
    times: list[list[int]] = field(default_factory=list)
    end: cp_model.IntVar = field(init=False)
    many: list[cp_model.IntVar] = field(default_factory=list)
    given: list[list[cp_model.IntVar]] = field(default_factory=list)

    def build(self) -> None:
        self.cohorts = cohorts(self.offer)
        self.times = [self._times(bucket) for bucket in self.buckets]
        longest = sum(bucket.count * max(row) for bucket, row in zip(self.buckets, self.times, strict=True))
        self.end = self.model.new_int_var(0, longest, "end")
        self.many = [self.model.new_int_var(0, cohort.most, f"many{c}") for c, cohort in enumerate(self.cohorts)]
        self.given = [self._row(q) for q in range(len(self.buckets))]
        loads = [self._cohort(c) for c in range(len(self.cohorts))]
        degrees = [self.offer.degrees[cohort.at] for cohort in self.cohorts]
        ranks = self.offer.terms.bounds.ranks
        self.model.add(sum(d * n for d, n in zip(degrees, self.many, strict=True)) <= ranks)
        self.model.add(sum(d * load for d, load in zip(degrees, loads, strict=True)) <= ranks * self.end)
        for c, (one, other) in enumerate(pairwise(self.cohorts)):
            if one == other:
                self.model.add(self.many[c] >= self.many[c + 1])
                self.model.add(loads[c] >= loads[c + 1])
        self.model.minimize(self.end)

    def hint(self, start: Groups, lengths: Sequence[int]) -> None:
        """Where the search begins: a known choice."""
        bucket_of = [q for q in range(len(self.buckets) - 1, -1, -1) for _ in range(self.buckets[q].count)]
        many, given = [0] * len(self.cohorts), [[0] * len(self.cohorts) for _ in self.buckets]
        degrees = [at for at in range(len(start.counts) - 1, -1, -1) for _ in range(start.counts[at])]
        order = [
            (-at, -sum(self.offer.seconds(lengths[i])[at] for i in held), held)
            for at, held in zip(degrees, start.members, strict=True)
            if held
        ]
        for at, _, held in sorted(order):
            c = next(c for c, one in enumerate(self.cohorts) if one.at == -at and many[c] < one.most)
            many[c] += 1
            for i in held:
                given[bucket_of[i]][c] += 1
        for c, one in enumerate(self.many):
            self.model.add_hint(one, many[c])
            for q, row in enumerate(self.given):
                self.model.add_hint(row[c], given[q][c])

    def _times(self, bucket: Bucket) -> list[int]:
        """Units of time that a sequence of the bucket takes a group of each cohort; 0 where it has no room."""
        seconds = self.offer.seconds(bucket.length)
        rooms = self.offer.rooms
        return [
            round(UNITS * seconds[one.at] / self.seconds) if bucket.length <= rooms[one.at] else 0
            for one in self.cohorts
        ]

    def _row(self, q: int) -> list[cp_model.IntVar]:
        """Sequences of a bucket by cohort."""
        bucket, found = self.buckets[q], []
        for c, cohort in enumerate(self.cohorts):
            most = min(bucket.count, cohort.most * (self.offer.rooms[cohort.at] // bucket.length))
            given = self.model.new_int_var(0, most, f"given{q},{c}")
            if most and cohort.most > 1:
                some = self.model.new_bool_var(f"some{q},{c}")
                self.model.add(given <= most * some)
                self.model.add(self.end >= self.times[q][c] * some)
            found.append(given)
        self.model.add(sum(found) == bucket.count)
        return found

    def _cohort(self, c: int) -> cp_model.LinearExpr:
        """What a cohort has to do, bounded by how many groups it has."""
        cohort, many = self.cohorts[c], self.many[c]
        load = cp_model.LinearExpr.weighted_sum([row[c] for row in self.given], [row[c] for row in self.times])
        tokens = sum(bucket.length * row[c] for bucket, row in zip(self.buckets, self.given, strict=True))
        self.model.add(tokens <= self.offer.rooms[cohort.at] * many)
        chosen = [self.model.new_bool_var(f"many{c}={n}") for n in range(cohort.most + 1)]
        self.model.add_exactly_one(chosen)
        self.model.add(many == sum(n * one for n, one in enumerate(chosen)))
        for n, one in enumerate(chosen):
            self.model.add(load <= n * self.end).only_enforce_if(one)
        return load
