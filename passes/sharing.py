"""The pass that decides how the ranks of a group share the documents of a micro-step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from fourfold.ir.ops import op_of
from fourfold.ir.plan import Decision, Plan, Sharing
from fourfold.passes.costs import Costs
from fourfold.passes.load import load_of
from fourfold.passes.pins import number


@dataclass(frozen=True, slots=True)
class ShareDocuments:
    """Decides the sequence method, its layout, and how many neighbours exchange heads.

    Given: mesh and micro-steps. Minimises: seconds of all attentions of one micro-step, forward and backward, by the
    recorded events of each method on the links the group crosses. Subject to: the pins. All attentions share alike,
    as tokens are laid out once. Source: reference of each method in ir/sequence.
    """

    costs: Costs
    known: dict[tuple[object, ...], Sharing] = field(default_factory=dict)

    def __call__(self, plan: Plan) -> Plan:
        """The plan with the fastest way to share."""
        if plan.mesh.sp == 1:
            return plan
        load = load_of(plan)
        key = (plan.mesh.sp, plan.mesh.tp, load.tokens, load.length, tuple(plan.pins.items()))
        if key not in self.known:
            self.known[key] = min(options(plan), key=lambda one: self._seconds(plan, one))
        return replace(plan, sharing=self.known[key])

    def decisions(self, plan: Plan) -> Iterator[Decision]:
        """Each way, and the seconds of attention of one micro-step."""
        if plan.mesh.sp > 1:
            over = sorted(((str(one), self._seconds(plan, one)) for one in options(plan)), key=lambda pair: pair[1])
            yield Decision("ShareDocuments", "sequence", str(plan.sharing), tuple(over))

    def _seconds(self, plan: Plan, sharing: Sharing) -> float:
        tried = replace(plan, sharing=sharing)
        seconds = self.costs.seconds(tried)
        total = 0.0
        for block in plan.graph.blocks.values():
            for node in block.nodes:
                if op_of(node).kind == "attention":
                    times = seconds.attention(node, plan.mesh.tp, block)
                    total += plan.graph.counts[block.name] * (times.forward + times.backward)
        return total


def options(plan: Plan) -> tuple[Sharing, ...]:
    """The ways worth pricing for a mesh: balanced layouts, each method, each number of ranks that exchange heads."""
    sp, pins = plan.mesh.sp, plan.pins
    travel = str(pins.get("travel", "float32"))
    found = [Sharing("ring", "zigzag", 1, travel), Sharing("gather_kv", "zigzag", 1, travel)]
    found += [Sharing("token_ring", "zigzag", 1, travel), Sharing("ulysses", "contiguous", sp, travel)]
    found += [Sharing("usp", "zigzag", u, travel) for u in range(2, sp) if sp % u == 0]
    method, layout, ulysses = pins.get("sequence"), pins.get("layout"), number(pins, "ulysses")
    if layout is not None:
        found = [replace(one, layout=str(layout)) for one in found]
    kept = [one for one in found if method in (None, one.method) and ulysses in (None, one.ulysses)]
    if kept:
        return tuple(kept)
    return (Sharing(str(method or "ring"), str(layout or "zigzag"), ulysses or 1, travel),)
