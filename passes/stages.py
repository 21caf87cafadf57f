"""The pass that cuts the calls into pipeline stages: the slowest rank of the line as fast as can be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, combinations, pairwise

from fourfold.ir.plan import Decision, Plan
from fourfold.passes.price.costs import Costs


@dataclass(frozen=True, slots=True)
class CutStages:
    """Decides at which calls pipeline stages begin.

    Given: mesh, schedule, layouts. Minimises: the time of the slowest stage in one micro-step, forward and backward.
    Subject to: stages of consecutive calls, `virtual` of them on each rank. Exact: the least bound under which a greedy
    cut needs no more stages than there are, by bisection over all sums of neighbours. Embedding and head count at
    their own weights.
    """

    costs: Costs

    def __call__(self, plan: Plan) -> Plan:
        """The plan with its bounds."""
        if plan.mesh.pp == 1:
            return plan
        weights = [cost.path for cost in self.costs.priced(plan).calls]
        return replace(plan, bounds=bounds(weights, plan.mesh.pp * plan.virtual))

    def every(self, plan: Plan) -> Iterator[Plan]:
        """The plan with each way to cut it."""
        if plan.mesh.pp == 1:
            yield plan
            return
        for chosen in combinations(range(1, len(plan.graph.calls)), plan.mesh.pp * plan.virtual - 1):
            yield replace(plan, bounds=chosen)

    def decisions(self, plan: Plan) -> Iterator[Decision]:
        """Where the stages begin, and the seconds of each in one micro-step."""
        if plan.mesh.pp == 1:
            return
        weights = [cost.path for cost in self.costs.priced(plan).calls]
        cuts = (0, *plan.bounds, len(weights))
        each = tuple((f"calls {a} to {b - 1}", sum(weights[a:b])) for a, b in pairwise(cuts))
        yield Decision("CutStages", "stages", f"{len(each)}, {plan.schedule}", each)


def bounds(weights: Sequence[float], count: int) -> tuple[int, ...]:
    """Where `count` non-empty runs of consecutive weights begin, after the first: their largest sum is least."""
    assert count <= len(weights), (count, len(weights))
    sums = list(accumulate(weights, initial=0.0))
    low, high = max(max(weights), sums[-1] / count), sums[-1]
    best = _greedy(weights, high, count)
    assert best is not None
    for _ in range(60):
        middle = (low + high) / 2
        found = _greedy(weights, middle, count)
        low, high, best = (low, middle, found) if found is not None else (middle, high, best)
        if high - low <= 1e-9 * high:
            break
    return best


def _greedy(weights: Sequence[float], limit: float, count: int) -> tuple[int, ...] | None:
    """Runs of at most `limit`, as long as can be, the last ones of one weight where there would be too few."""
    starts: list[int] = []
    total, size = 0.0, 0
    for at, weight in enumerate(weights):
        left, missing = len(weights) - at, count - 1 - len(starts)
        if size and (total + weight > limit * (1 + 1e-12) or left == missing):
            starts.append(at)
            total, size = 0.0, 0
        total, size = total + weight, size + 1
    return tuple(starts) if len(starts) == count - 1 else None
