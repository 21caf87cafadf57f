"""A small graph on few ranks, to the end: every option of every pass, left out only where none of it can be better."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import lcm

from fourfold.ir.answer import Candidate
from fourfold.ir.plan import Plan
from fourfold.passes.price.costs import Costs
from fourfold.passes.search.deciding import Pass
from fourfold.passes.search.meshes import every_mesh
from fourfold.passes.search.orders import orders
from fourfold.passes.search.settings import every_setting

RANKS, CALLS = 16, 6
"""The most ranks, and the most calls of a graph (four layers between embedding and head), for which this is done."""

LOOKS = 60_000
"""Options that are looked at, of which a second holds some thousands: exact where they are enough, as on fast links."""

BETTER = 1.0 - 1e-9
"""The share of a plan's seconds that a better one stays below: rounding is no gain."""


def small(plan: Plan, ranks: int) -> bool:
    """Whether all there is can be looked at."""
    return ranks <= RANKS and len(plan.graph.calls) <= CALLS


@dataclass(frozen=True, slots=True)
class Exhaust:
    """Decides everything at once: mesh, ZeRO stage, schedule, micro-steps, and all that the passes decide one by one.

    Given: a plan that names graph, machine, workload, precision, optimizer and pins; the best plan known. Minimises:
    seconds of one step. Subject to: the upper memory band within the device; the pins. Exact but for the cuts over the
    tensor axis, which are those of the flow program: a branch is left as soon as its floor is not below the best known.
    After LOOKS options it ends with the best it has.
    """

    costs: Costs
    passes: Sequence[Pass]
    _looked: Counter[str] = field(default_factory=Counter)

    def __call__(self, plan: Plan, best: Candidate | None) -> Candidate | None:
        """A plan that fits and beats `best`, such that none beats it; or None."""
        found: Candidate | None = None
        for start in self._starts(plan):
            found = self._below(start, self.passes, found or best) or found
        return found

    def _starts(self, plan: Plan) -> Iterator[Plan]:
        for mesh in every_mesh(plan, self.costs.machine.ranks):
            others = () if "order" in plan.pins else orders(mesh, self.costs.machine)
            for one in (mesh, *others):
                yield from every_setting(replace(plan, mesh=one, bucket=lcm(plan.bucket, one.tp)))

    def _below(self, plan: Plan, passes: Sequence[Pass], best: Candidate | None) -> Candidate | None:
        """The best plan that these passes can make of this one and that beats `best`."""
        if not passes:
            return self._whole(plan, _limit(best))
        options = [self._floored(one) for one in passes[0].every(plan)]
        found: Candidate | None = None
        for floor, one in sorted(options, key=lambda pair: pair[0]):
            if floor >= _limit(found or best) or self._looked["options"] > LOOKS:
                break
            found = self._below(one, passes[1:], found or best) or found
        return found

    def _floored(self, plan: Plan) -> tuple[float, Plan]:
        """Before the tensor axis cuts anything, each rank would seem to do all."""
        self._looked["options"] += 1
        return (self.costs.priced(plan).close_floor if plan.layouts else 0.0), plan

    def _whole(self, plan: Plan, limit: float) -> Candidate | None:
        priced = self.costs.priced(plan)
        if not priced.memory().fits(self.costs.machine.device):
            return None
        return Candidate(plan, priced.estimate()) if priced.step.seconds < limit else None


def _limit(best: Candidate | None) -> float:
    """Seconds that a plan must stay below to be better."""
    return best.estimate.step * BETTER if best else float("inf")
