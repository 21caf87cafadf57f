"""How every value of a block lies under a layout: the state it is made in, and those its readers need."""

from __future__ import annotations

from collections.abc import Mapping

from fourfold.ir.graph import Block
from fourfold.ir.ops import rule_for
from fourfold.ir.plan import Layout
from fourfold.ir.rule import WHOLE, R, State

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
