"""What is worked out once for one model, workload and machine, and asked for hundreds of times by a search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fourfold.hardware.machine import Crossing
from fourfold.hardware.topology import Machine
from fourfold.ir.mesh import Mesh
from fourfold.ir.plan import Plan, Sharing
from fourfold.passes.price.laid import LaidGraph
from fourfold.passes.price.load import Load, load_of
from fourfold.passes.price.price import Priced, seconds_of
from fourfold.passes.price.seconds import Seconds
from fourfold.passes.price.steps import CallCost
from fourfold.passes.price.work import BlockWork, work

Axis = tuple[int, int]
"""Ranks of an axis, and how far apart they are numbered: which links it crosses."""
Key = tuple[Axis, Axis, Sharing | None, Load]
"""What the seconds of an op depend on: the tensor axis, the one of ranks that share documents and how, the load."""


@dataclass(frozen=True)
class Costs:
    """Prices plans of one graph, workload and precision; plans that share layouts and a load share their work.

    Layouts are told apart by identity: a pass that finds the same ones again hands out the same object.
    """

    machine: Machine
    _seconds: dict[Key, Seconds] = field(default_factory=dict)
    _laid: dict[tuple[int, int], LaidGraph] = field(default_factory=dict)
    _work: dict[tuple[int, Key], Mapping[str, BlockWork]] = field(default_factory=dict)
    _pools: dict[Mesh, Crossing] = field(default_factory=dict)
    _calls: dict[tuple[int, Key], dict[tuple[object, ...], CallCost]] = field(default_factory=dict)

    def seconds(self, plan: Plan) -> Seconds:
        """The prices of ops under a plan's tensor axis and load."""
        key = _key(plan)
        if key not in self._seconds:
            self._seconds[key] = seconds_of(plan, self.machine)
        return self._seconds[key]

    def priced(self, plan: Plan) -> Priced:
        """A plan with the parts of its price."""
        laid, seconds = self._laid_graph(plan), self.seconds(plan)
        key = id(plan.layouts), _key(plan)
        if key not in self._work:
            self._work[key] = {name: work(block, seconds) for name, block in laid.blocks.items()}
        return Priced(plan, self.machine, laid, self._work[key], self._calls.setdefault(key, {}), self._pools)

    def _laid_graph(self, plan: Plan) -> LaidGraph:
        """Kept with its layouts, so that no other object can get their identity."""
        key = id(plan.layouts), plan.mesh.tp
        if key not in self._laid:
            self._laid[key] = LaidGraph(plan.graph, plan.layouts, plan.mesh.tp)
        return self._laid[key]


def _key(plan: Plan) -> Key:
    sharing = plan.sharing if plan.mesh.sp > 1 else None
    mesh = plan.mesh
    return (mesh.tp, mesh.stride("tp")), (mesh.sp, mesh.stride("sp")), sharing, load_of(plan)
