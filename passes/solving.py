"""The pass that lets a solver order the micro-steps of a short pipeline, where the plan asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from fourfold.ir.plan import Decision, Plan
from fourfold.passes.price.costs import Costs
from fourfold.passes.schedule.solver import solved

EFFORT = 0.25
"""Deterministic time of one solve: the same plan from the same question, on every machine."""

NEAR = 0.005
"""Share of a step that a better order is not looked for: prices are not that exact."""


@dataclass(frozen=True, slots=True)
class SolveSchedule:
    """Decides when each F, I and W of each micro-step runs, of a plan whose schedule is "solved" (CP-SAT).

    Given: stages, recompute. Minimises: the end of the last action. Subject to: as many micro-steps between F and W on
    a place as fit its memory, at least those of zero-bubble, where the search begins; so it is never slower than that.
    The text is part of the plan, and what ranks execute.
    """

    costs: Costs
    known: dict[tuple[object, ...], str] = field(default_factory=dict)

    def __call__(self, plan: Plan) -> Plan:
        """The plan with its order; as it is, where its schedule has a generator."""
        if plan.schedule != "solved" or plan.mesh.pp == 1:
            return plan
        priced = self.costs.priced(plan)
        durations = {(at, kind): took for at, cost in enumerate(priced.stages) for kind, took in cost.split.items()}
        memory = tuple(self._room(plan, place) for place in range(plan.mesh.pp))
        key = (tuple(durations.items()), plan.micro_steps, memory, priced.send)
        if key not in self.known:
            found = solved(durations, plan.micro_steps, memory=memory, send=priced.send, effort=EFFORT, near=NEAR)
            self.known[key] = str(found.schedule)
        ordered = replace(plan, order=self.known[key])
        fits = self.costs.priced(ordered).memory().fits(self.costs.machine.device)
        # Counted in whole micro-steps its memory is a little less exact than zero-bubble's, which then stands.
        return ordered if fits else plan

    def every(self, plan: Plan) -> Iterator[Plan]:
        """The one plan: a solver leaves nothing to try."""
        yield self(plan)

    def decisions(self, plan: Plan) -> Iterator[Decision]:
        """The solved order beside the generated ones."""
        if not plan.order:
            return
        tried = [replace(plan, schedule=name, order="") for name in ("1f1b", "zero_bubble")]
        over = [(plan.schedule, plan), *((one.schedule, one) for one in tried)]
        seconds = tuple((name, self.costs.priced(one).estimate().step) for name, one in over)
        yield Decision("SolveSchedule", "order", plan.schedule, seconds)

    def _room(self, plan: Plan, place: int) -> int:
        """Micro-steps that may be between F and W there: those that fit whole, and never fewer than zero-bubble's."""
        line, least = self.costs.priced(plan).lines[place], min(plan.mesh.pp, plan.micro_steps)
        saved, again = line.kept
        most = least
        while most < plan.micro_steps and line.memory_with((most + 1) * saved / line.in_flight, again).fits(
            line.device
        ):
            most += 1
        return most
