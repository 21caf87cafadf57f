"""The whole story of planning: a graph and a machine in, the passes in order, the best plans out.

Graph --candidates--> Plan(mesh, ZeRO, micro-steps) --PASSES, verified between--> Plan --price--> best
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from fourfold.hardware.errors import InfeasibleError, UsageError
from fourfold.hardware.topology import Machine
from fourfold.ir.answer import Answer, Refusal
from fourfold.ir.plan import Plan
from fourfold.passes.cuts import CutTensors
from fourfold.passes.price.costs import Costs
from fourfold.passes.recompute import ChooseRecompute
from fourfold.passes.search.deciding import Pass, Watch, unwatched
from fourfold.passes.search.pins import check_pins
from fourfold.passes.search.repairs import infeasible
from fourfold.passes.search.search import Search
from fourfold.passes.sharing import ShareDocuments
from fourfold.passes.solving import SolveSchedule
from fourfold.passes.stages import CutStages

PASSES: tuple[Callable[[Costs], Pass], ...] = (
    ShareDocuments,
    CutTensors,
    CutStages,
    ChooseRecompute,
    SolveSchedule,
)
"""Each turns a plan into one with one more decision; `verify` looks at it between any two."""


@dataclass(frozen=True, slots=True)
class Planner:
    """Plans one model for one machine and workload, as often as asked: what was worked out once is kept."""

    machine: Machine
    watch: Watch = unwatched
    exact: bool = True
    costs: Costs = field(init=False)
    passes: tuple[Pass, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "costs", Costs(self.machine))
        object.__setattr__(self, "passes", tuple(make(self.costs) for make in PASSES))

    def search(self, start: Plan, *, top: int = 0) -> tuple[Answer | None, tuple[Refusal, ...]]:
        """The best plans that keep the pins of `start`, or None; and the meshes that do not fit."""
        check_pins(start)
        return Search(self.costs, self.passes, top, self.watch, self.exact)(start)


def planned(start: Plan, machine: Machine, *, top: int = 3, watch: Watch = unwatched) -> Answer:
    """The answer for a plan that names graph, machine, workload, precision, optimizer and pins.

    `watch` is called with the name of each pass and the plan it made. Raises UsageError for pins that cannot be kept,
    InfeasibleError when nothing fits.
    """
    planner = Planner(machine, watch)
    answer, refused = planner.search(start, top=top)
    if answer is None:
        raise InfeasibleError(
            infeasible(start, machine, refused, lambda plan, other: Planner(other, exact=False).search(plan)[0])
        )
    return replace(answer, pins=_pin_costs(start, planner, answer))


def _pin_costs(start: Plan, planner: Planner, answer: Answer) -> dict[str, float]:
    """Seconds each pin adds to a step: the step with all pins less the step without that one.

    A pin without which the others cannot be kept has no price of its own.
    """
    found = {}
    for name in start.pins:
        try:
            free, _ = planner.search(replace(start, pins={k: v for k, v in start.pins.items() if k != name}))
        except UsageError:
            continue
        found[name] = answer.estimate.step - free.estimate.step if free else 0.0
    return found
