"""Small rewrites of the flat graph: each a function Flat -> Flat, listed once in REWRITES."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fourfold.compiler.capture.flat import Flat
from fourfold.compiler.capture.prefixes import prefixes
from fourfold.compiler.capture.split import split_fused
from fourfold.ir.graph import Arg, Node, Ref
from fourfold.ir.ops import op_of


def substitute(arg: Arg, names: dict[str, Ref]) -> Arg:
    """`arg` with references renamed."""
    if isinstance(arg, Ref):
        return names.get(arg.name, arg)
    if isinstance(arg, tuple):
        return tuple(substitute(a, names) for a in arg)
    return arg


def renamed(node: Node, names: dict[str, Ref]) -> Node:
    """`node` reading other values."""
    kwargs = tuple((k, substitute(v, names)) for k, v in node.kwargs)
    return replace(node, args=tuple(substitute(a, names) for a in node.args), kwargs=kwargs)


def drop_dead(flat: Flat) -> Flat:
    """Keeps what the logits need."""
    live, kept = {flat.output}, []
    for node in reversed(flat.nodes):
        if node.name in live:
            live.update(node.refs())
            kept.append(node)
    return replace(flat, nodes=kept[::-1])


def merge_views(flat: Flat) -> Flat:
    """view(view(x)) --> view(x); a view to the shape it came from is none."""
    made: dict[str, Node] = {}
    values = flat.values()
    same: dict[str, Ref] = {}
    nodes = []
    for node in flat.nodes:
        node = renamed(node, same)
        source = made.get(node.refs()[0]) if node.op == "view" else None
        if source is not None and source.op == "view":
            node = replace(node, args=source.args)
        if node.op == "view" and values[node.refs()[0]].shape == node.value.shape and node.name != flat.output:
            same[node.name] = Ref(node.refs()[0])
            continue
        made[node.name] = node
        nodes.append(node)
    return replace(flat, nodes=nodes)


def merge_glue(flat: Flat) -> Flat:
    """f(x), f(x) --> f(x), f(x) is the first again, for elementwise ops between modules that no gradient flows through.

    Rotary tables that a loop casts for each of its layers are cast once; so layers are handed two values, not two each.
    What stands inside a module stays there, as its calls could not be written once without it.
    """
    inside = prefixes(flat)
    first: dict[object, str] = {}
    same: dict[str, Ref] = {}
    nodes = []
    for node in flat.nodes:
        node = renamed(node, same)
        key = (node.op, node.args, node.kwargs, node.value)
        fixed = op_of(node).kind in ("pointwise", "free") and node.op != "dropout" and not node.value.grad
        glue = fixed and not inside.get(node.module)
        if glue and key in first and node.name != flat.output:
            same[node.name] = Ref(first[key])
            continue
        if glue:
            first[key] = node.name
        nodes.append(node)
    return replace(flat, nodes=nodes)


REWRITES: tuple[Callable[[Flat], Flat], ...] = (merge_views, drop_dead, split_fused, drop_dead, merge_views, merge_glue)
