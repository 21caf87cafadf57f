"""How every value of a block lies under a layout: the state it is made in, and those its readers need."""

from __future__ import annotations

from collections.abc import Mapping

from fourfold.ir.graph import Block
from fourfold.ir.ops import rule_for
from fourfold.ir.plan import Layout
from fourfold.ir.rule import WHOLE, Q, R, State

Made = dict[str, State]
Needs = dict[str, tuple[State, ...]]


def states_of(block: Block, layout: Layout) -> tuple[Made, Needs]:
    """The state each value is made in, and the states each node needs its inputs in."""
    values = block.values()
    made = {name: State.parse(layout.states.get(name, "R")) for name in block.inputs}
    needs = {}
    for node in block.nodes:
        cut = layout.cuts.get(node.name, WHOLE)
        rule = rule_for(node, values, cut)
        made[node.name] = rule.gives(cut)
        needs[node.name] = rule.needs(cut)
    return made, needs


def stored(block: Block, name: str, needs: Mapping[str, tuple[State, ...]]) -> State:
    """How a parameter is stored: cut as its readers need it, else whole. All that cut it must cut it alike."""
    wanted = (s for node in block.nodes for r, s in zip(node.refs(), needs[node.name], strict=True) if r == name)
    cuts = {s for s in wanted if s.kind == "S"}
    assert len(cuts) <= 1, f"{name} is needed cut in two ways: {', '.join(sorted(map(str, cuts)))}"
    return cuts.pop() if cuts else R


def deferrable(block: Block, needs: Mapping[str, tuple[State, ...]]) -> tuple[str, ...]:
    """Linear layers whose weight's gradient may come later than their input's: those that read the weight as it lies.

    Where a whole op reads it too, a cut one's gradient is joined on its way (backends/lowering/lower.py), and comes at
    once.
    """
    read: dict[str, set[State]] = {}
    for node in block.nodes:
        for name, state in zip(node.refs(), needs[node.name], strict=True):
            read.setdefault(name, set()).add(state)
    found = []
    for node in block.nodes:
        weight = node.refs()[1] if node.op == "linear" else ""
        if (
            weight in block.parameters
            and block.parameters[weight].grad
            and (Q not in read[weight] or read[weight] == {Q})
        ):
            found.append(node.name)
    return tuple(found)
