"""What is worked out once for one model, workload and machine, and asked for hundreds of times by a search."""

from __future__ import annotations

from dataclasses import dataclass, field

from fourfold.hardware.topology import Machine
from fourfold.ir.plan import Layout, Plan
from fourfold.passes.load import Load, load_of
from fourfold.passes.price import Priced, seconds_of
from fourfold.passes.seconds import Seconds
from fourfold.passes.work import BlockWork, Laid, work

LayoutKey = tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]]


@dataclass(frozen=True)
class Costs:
    """Prices plans of one graph, workload and precision; plans that share a layout and a load share their work."""

    machine: Machine
    _seconds: dict[tuple[int, Load], Seconds] = field(default_factory=dict)
    _laid: dict[tuple[str, int, LayoutKey], Laid] = field(default_factory=dict)
    _work: dict[tuple[str, int, LayoutKey, Load], BlockWork] = field(default_factory=dict)

    def seconds(self, plan: Plan) -> Seconds:
        """The prices of ops under a plan's tensor axis and load."""
        key = plan.mesh.tp, load_of(plan)
        if key not in self._seconds:
            self._seconds[key] = seconds_of(plan, self.machine)
        return self._seconds[key]

    def priced(self, plan: Plan) -> Priced:
        """A plan with the parts of its price."""
        laid, works = {}, {}
        seconds, tp = self.seconds(plan), plan.mesh.tp
        for name, block in plan.graph.blocks.items():
            layout = plan.layouts.get(name, Layout())
            key = name, tp, _key(layout)
            if key not in self._laid:
                self._laid[key] = Laid(block, layout, tp)
            laid[name] = self._laid[key]
            if (*key, seconds.load) not in self._work:
                self._work[*key, seconds.load] = work(laid[name], seconds)
            works[name] = self._work[*key, seconds.load]
        return Priced(plan, self.machine, laid, works)


def _key(layout: Layout) -> LayoutKey:
    return tuple(layout.cuts.items()), tuple(layout.states.items())
