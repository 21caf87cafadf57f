"""A plan for the model as it is verified: in another dtype, made smaller, on fewer ranks; its layout is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import lcm
from typing import Any

from fourfold.hardware.errors import UsageError
from fourfold.ir.graph import Block, Graph, Node
from fourfold.ir.mesh import AXES, Mesh
from fourfold.ir.ops import rule_for, rules
from fourfold.ir.plan import Layout, Plan, Precision
from fourfold.ir.rule import PARTIAL, WHOLE, State
from fourfold.ir.workload import Workload

PASSING = ("cast", "dropout", "detach")
"""Ops that come and go with the dtype and with training: each lies as what it reads."""
BUCKET = 8
PRECISIONS: Mapping[str, Precision] = {"float32": Precision.fp32, "float64": Precision.fp64}


def smaller(mesh: Mesh, most: int) -> Mesh:
    """A mesh of at most `most` ranks with the same axes: the widest axis goes down until it fits.

    What tp and pp cut must still divide, so they go down to a divisor; any degree of dp and sp deals its tokens out.
    """
    while mesh.ranks > most:
        axis = max(AXES, key=lambda name: int(getattr(mesh, name)))
        degree = int(getattr(mesh, axis))
        divisor = max(n for n in range(1, degree) if degree % n == 0)
        change: dict[str, Any] = {axis: divisor if axis in ("tp", "pp") else (degree + 1) // 2}
        mesh = replace(mesh, **change)
    return mesh


def refitted(plan: Plan, graph: Graph, *, dtype: str, mesh: Mesh, capacity: int, lengths: tuple[int, ...]) -> Plan:
    """`plan` for `graph` on `mesh`: cuts by block and node, recompute by call, stages as even, everything in `dtype`.

    Raises UsageError when a block or a node of the graph has no counterpart in the plan, a cut does not divide, or
    there are more stages than calls.
    """
    layouts = {name: _layout(plan, block, mesh.tp) for name, block in graph.blocks.items()} if mesh.tp > 1 else {}
    return replace(
        plan,
        graph=graph,
        workload=Workload.of(lengths),
        mesh=mesh,
        precision=PRECISIONS[dtype],
        capacity=capacity,
        bucket=lcm(BUCKET, mesh.tp),
        layouts=layouts,
        recompute=_recompute(plan, graph),
        bounds=_bounds(plan, len(graph.calls), mesh.pp),
        order=plan.order if mesh.pp == plan.mesh.pp else "",
        sharing=replace(plan.sharing, travel=dtype),
    )


def _bounds(plan: Plan, calls: int, ranks: int) -> tuple[int, ...]:
    """Where stages begin: on fewer ranks those of neighbours are one; of another number of calls, in proportion."""
    if ranks == 1:
        return ()
    merged = plan.mesh.pp // ranks
    kept = plan.bounds[merged - 1 :: merged]
    if calls <= len(kept):
        raise UsageError(
            f"the plan has {len(kept) + 1} stages on {ranks} ranks and the model to verify {calls} blocks: verify a "
            "model of more layers (its function takes keywords), or on fewer processes"
        )
    found: list[int] = []
    for at, bound in enumerate(kept):
        near = round(bound * calls / len(plan.graph.calls))
        found.append(min(max(near, (found[-1] if found else 0) + 1), calls - (len(kept) - at)))
    return tuple(found)


def _recompute(plan: Plan, graph: Graph) -> tuple[str, ...]:
    """Each call's word is that of the call at the same place among its class's: the first and the last stay."""
    if not plan.recompute:
        return ()
    words: dict[str, list[str]] = {}
    for call, word in zip(plan.graph.calls, plan.recompute, strict=True):
        words.setdefault(_plain(call.block), []).append(word)
    seen: dict[str, int] = {}
    found = []
    for call in graph.calls:
        name = _plain(call.block)
        there = words.get(name, [plan.recompute[-1]])
        count = sum(_plain(c.block) == name for c in graph.calls)
        at = seen[name] = seen.get(name, -1) + 1
        found.append(there[round(at * (len(there) - 1) / max(1, count - 1))])
    return tuple(found)


def _layout(plan: Plan, block: Block, tp: int) -> Layout:
    name = block.name if block.name in plan.layouts else _plain(block.name)
    if name not in plan.layouts:
        raise UsageError(
            f"the plan lays out {', '.join(plan.layouts) or 'no block'} and the model to verify has {block.name}: "
            "it was made for another model; plan this one"
        )
    layout, old = plan.layouts[name], plan.graph.blocks[name]
    if len(old.inputs) != len(block.inputs) or len(old.outputs) != len(block.outputs):
        raise UsageError(
            f"{block.name} hands on {len(block.outputs)} values and {len(old.outputs)} in the plan; plan this model"
        )
    # What passes values on may have gone from the end of a block, and with it the output's name.
    pairs = zip((*old.inputs, *old.outputs), (*block.inputs, *block.outputs), strict=True)
    states = {new: layout.states[name] for name, new in pairs if name in layout.states}
    return Layout(_cuts(layout, states, old, block, tp), states)


def _cuts(layout: Layout, states: Mapping[str, str], old: Block, new: Block, tp: int) -> dict[str, str]:
    """A cut for each node of `new`: that of the node of the same name, or what fits the node it reads."""
    known = {node.name: node for node in old.nodes}
    values = new.values()
    made = {n: State.parse(states.get(n, "R")) for n in new.inputs}
    cuts = {}
    for node in new.nodes:
        if node.op in PASSING and node.refs()[0] in made:
            cut = _following(node, values, made[node.refs()[0]], tp)
        else:
            cut = _same(node, known, layout, new)
        rule = rule_for(node, values, cut)
        if cut not in (WHOLE, PARTIAL) and all(cut not in r.cuts(tp) for r in rules(node, values)):
            size = rule.sizes.get(cut, 0)
            raise UsageError(
                f"the plan cuts label {cut} of {new.name}.{node.name} {tp} ways and the model to verify has {size}"
            )
        made[node.name] = rule.gives(cut)
        if cut != WHOLE:
            cuts[node.name] = cut
    return cuts


def _same(node: Node, known: Mapping[str, Node], layout: Layout, block: Block) -> str:
    there = known.get(node.name)
    if there is None or there.op != node.op:
        found = "no such node" if there is None else there.op
        raise UsageError(
            f"{block.name}.{node.name} is {node.op} in the model to verify and {found} in the plan: the plan was made "
            "for another model, or the model computes otherwise in this dtype; plan it in this dtype"
        )
    return layout.cuts.get(node.name, WHOLE)


def _following(node: Node, values: Mapping[str, object], state: State, tp: int) -> str:
    """The cut that takes the input as it lies, whole if none does."""
    for rule in rules(node, values):  # type: ignore[arg-type]
        for cut in rule.cuts(tp):
            if rule.needs(cut)[0] == state:
                return cut
    return WHOLE


def _plain(name: str) -> str:
    """A class's name without its number: layers.*#2 is another kind of layers.*."""
    return name.split("#")[0]
