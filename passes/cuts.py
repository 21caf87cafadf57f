"""The pass that cuts ops over the tensor axis: prices from the machine, the linear program, one layout a block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import sqrt

from fourfold.ir.graph import Block, Node
from fourfold.ir.ops import op_of, rule_for, rules
from fourfold.ir.plan import Decision, Layout, Plan
from fourfold.ir.rule import WHOLE, Rule
from fourfold.passes.cutting.cutting import Cutter, Prices
from fourfold.passes.price.costs import Costs
from fourfold.passes.price.seconds import Seconds
from fourfold.passes.search.pins import pinned_cuts
from fourfold.passes.search.settings import most_micro_steps

EXPLAINED = ("matmul", "gather", "attention", "loss")
"""Kinds of ops whose cut is worth a line in the log."""

ALIKE = 1.25
"""Numbers of micro-steps no further apart than this share a layout where the best one changes between them."""

Layouts = Mapping[str, Layout]
Key = tuple[int, int, int, tuple[tuple[tuple[str, str], str], ...]]
"""Tensor ranks, how far apart they are numbered, ranks that share documents, and pinned cuts."""


@dataclass(frozen=True, slots=True)
class CutTensors:
    """Decides how every op of every block is cut over the tensor axis, and in which states blocks hand values on.

    Given: mesh, micro-steps and the pinned cuts. Minimises: seconds of one micro-step's forward and backward, ops and
    collectives one after the other. Subject to: the rules; a weight that can be cut is cut; tied weights alike; what is
    dropped out is cut. Source: passes/cutting/cutting.py. Prices are nearly straight lines in the tokens of a
    micro-step, so a layout that is best for fewer and for more tokens is taken for those between.
    """

    costs: Costs
    solved: dict[Key, dict[int, Layouts]] = field(default_factory=dict)
    cutters: dict[tuple[int, tuple[tuple[tuple[str, str], str], ...]], Cutter] = field(default_factory=dict)

    def __call__(self, plan: Plan) -> Plan:
        """The plan with a layout for every block."""
        return replace(plan, layouts=self._layouts(plan))

    def every(self, plan: Plan) -> Iterator[Plan]:
        """The one layout: it is the best of all there are."""
        yield self(plan)

    def decisions(self, plan: Plan) -> Iterator[Decision]:
        """For each product, embedding, attention and loss: its cut, and the seconds of the op alone in each option.

        Seconds are of all its calls in one micro-step; what the cut asks of the links is not in them.
        """
        if plan.mesh.tp == 1:
            return
        seconds = self.costs.seconds(plan)
        for block in plan.graph.blocks.values():
            count, cuts = plan.graph.counts[block.name], plan.layouts[block.name].cuts
            for node in block.nodes:
                if op_of(node).kind in EXPLAINED:
                    over = tuple((label, count * t) for label, t in _options(block, node, seconds, plan.mesh.tp))
                    yield Decision("CutTensors", f"{block.name}.{node.name}", cuts.get(node.name, WHOLE), over)

    def _layouts(self, plan: Plan) -> Layouts:
        """Solved for this share of a step's tokens, or known because those for larger and for smaller ones agree.

        Shares are counted in micro-steps of all data ranks together: what meshes of as many tokens a rank have alike.
        """
        mesh, steps, pinned = plan.mesh, plan.micro_steps, pinned_cuts(plan)
        known = self.solved.setdefault((mesh.tp, mesh.stride("tp"), mesh.sp, tuple(pinned.items())), {})
        low, high = 1, max(most_micro_steps(plan), steps)
        while True:
            first, last = (self._known(replace(plan, micro_steps=end), known, pinned) for end in (low, high))
            if mesh.dp * steps in known or first == last or high <= ALIKE * low:
                return known.get(mesh.dp * steps, first)
            middle = max(low + 1, round(sqrt(low * high)))
            low, high = (middle, high) if middle <= steps else (low, middle)

    def _known(self, plan: Plan, known: dict[int, Layouts], pinned: Mapping[tuple[str, str], str]) -> Layouts:
        """The layout of one share, solved if need be; equal ones are one object."""
        share = plan.mesh.dp * plan.micro_steps
        if share not in known:
            found = self._solved(plan, pinned)
            known[share] = next((layouts for layouts in known.values() if layouts == found), found)
        return known[share]

    def _solved(self, plan: Plan, pinned: Mapping[tuple[str, str], str]) -> Layouts:
        if plan.mesh.tp == 1:
            return {name: Layout() for name in plan.graph.blocks}
        key = plan.mesh.tp, tuple(pinned.items())
        if key not in self.cutters:
            self.cutters[key] = Cutter(plan.graph, plan.mesh.tp, pinned)
        return self.cutters[key](_prices(self.costs.seconds(plan)))[0]


def _prices(seconds: Seconds) -> Prices:
    def op(node: Node, rule: Rule, label: str, block: Block) -> float:
        times = seconds.op(node, rule, label, block)
        return times.forward + times.backward

    return Prices(op, seconds.move, seconds.load.tokens)


def _options(block: Block, node: Node, seconds: Seconds, n: int) -> Iterator[tuple[str, float]]:
    """Each legal cut of a node with the seconds of one call."""
    values = block.values()
    for label in dict.fromkeys(c for rule in rules(node, values) for c in rule.cuts(n)):
        times = seconds.op(node, rule_for(node, values, label), label, block)
        yield label, times.forward + times.backward
