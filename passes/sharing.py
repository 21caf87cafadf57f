"""The pass that decides how the ranks of a group share the documents of a micro-step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from fourfold.ir.ops import op_of
from fourfold.ir.plan import Decision, Plan, Sharing
from fourfold.ir.sequence import EXCHANGING, METHODS
from fourfold.ir.sequence.tokens import LAYOUTS
from fourfold.passes.price.costs import Costs
from fourfold.passes.price.load import load_of
from fourfold.passes.search.pins import number


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
        strides = plan.mesh.stride("sp"), plan.mesh.stride("tp")
        key = (plan.mesh.sp, plan.mesh.tp, strides, load.tokens, load.length, tuple(plan.pins.items()))
        if key not in self.known:
            self.known[key] = min(options(plan), key=lambda one: self._seconds(plan, one))
        return replace(plan, sharing=self.known[key])

    def every(self, plan: Plan) -> Iterator[Plan]:
        """The plan with each way to share that the pins leave."""
        for one in (plan.sharing,) if plan.mesh.sp == 1 else every_option(plan):
            yield replace(plan, sharing=one)

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
    sp, layout = plan.mesh.sp, plan.pins.get("layout")
    found = [Sharing(name, "zigzag") for name in ("ring", "gather_kv", "token_ring")]
    found += [Sharing("ulysses", "contiguous", sp), *(Sharing("usp", "zigzag", u) for u in _inner(sp))]
    return _kept(found if layout is None else [replace(one, layout=str(layout)) for one in found], plan)


def every_option(plan: Plan) -> tuple[Sharing, ...]:
    """All there are: each method in each layout. Heads exchanged by all leave documents whole on each."""
    sp = plan.mesh.sp
    found = [Sharing(name, layout) for name in METHODS if name not in ("whole", *EXCHANGING) for layout in LAYOUTS]
    found += [Sharing("usp", layout, u) for layout in LAYOUTS for u in _inner(sp)]
    layout = str(plan.pins.get("layout", "contiguous"))
    return _kept([*found, Sharing("ulysses", layout, sp)], plan)


def _inner(sp: int) -> Iterator[int]:
    """How many of a group may exchange heads and leave a ring."""
    return (u for u in range(2, sp) if sp % u == 0)


def _kept(found: Sequence[Sharing], plan: Plan) -> tuple[Sharing, ...]:
    """Those that keep the pins; what is pinned alone where none does."""
    pins, travel = plan.pins, str(plan.pins.get("travel", "float32"))
    method, layout, ulysses = pins.get("sequence"), pins.get("layout"), number(pins, "ulysses")
    kept = [
        replace(one, travel=travel)
        for one in found
        if method in (None, one.method) and layout in (None, one.layout) and ulysses in (None, one.ulysses)
    ]
    if kept:
        return tuple(kept)
    return (Sharing(str(method or "ring"), str(layout or "zigzag"), ulysses or 1, travel),)
