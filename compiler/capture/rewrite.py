"""Small rewrites of the flat graph: each a function Flat -> Flat, listed once in REWRITES."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

from fourfold.compiler.capture.flat import Flat
from fourfold.ir.graph import Arg, Node, Part, Ref, Tensor


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


def readers(flat: Flat) -> dict[str, list[Node]]:
    """Who reads each value."""
    found: dict[str, list[Node]] = {}
    for node in flat.nodes:
        for name in dict.fromkeys(node.refs()):
            found.setdefault(name, []).append(node)
    return found


def drop_dead(flat: Flat) -> Flat:
    """Keeps what the logits need."""
    live, kept = {flat.output}, []
    for node in reversed(flat.nodes):
        if node.name in live:
            live.update(node.refs())
            kept.append(node)
    return replace(flat, nodes=kept[::-1])


def merge_views(flat: Flat) -> Flat:
    """view(view(x)) --> view(x)."""
    made = {node.name: node for node in flat.nodes}
    nodes = []
    for node in flat.nodes:
        source = made.get(node.refs()[0]) if node.op == "view" else None
        while source is not None and source.op == "view":
            node = replace(node, args=source.args)
            source = made.get(node.refs()[0])
        made[node.name] = node
        nodes.append(node)
    return replace(flat, nodes=nodes)


def select_to_slice(flat: Flat) -> Flat:
    """select(view(y -> .. k m..), k's dim) --> view(slice(y)): lets a fused projection be split."""
    made = {node.name: node for node in flat.nodes}
    nodes: list[Node] = []
    for node in flat.nodes:
        source = made.get(node.refs()[0]) if node.op == "select" and node.refs() else None
        at = _fused_dim(source, node, flat) if source is not None and source.op == "view" else None
        if at is None or source is None:
            nodes.append(node)
            continue
        width = flat.value(source.refs()[0]).shape[at]
        parts = source.value.shape[at]
        step, index = width // parts, int(str(node.args[2]))
        shape = (*source.value.shape[:at], step)
        cut = Node(
            f"{node.name}s",
            "slice",
            (source.args[0], at, index * step, (index + 1) * step),
            (),
            replace(node.value, shape=shape),
            node.module,
        )
        nodes += [cut, replace(node, op="view", args=(Ref(cut.name),))]
    return replace(flat, nodes=nodes)


def _fused_dim(view: Node, select: Node, flat: Flat) -> int | None:
    """The last dim of y, if the view splits it and the select picks from its major factor."""
    name = view.refs()[0]
    shape = next((n.value.shape for n in flat.nodes if n.name == name), None)
    if shape is None:
        return None
    last = len(shape) - 1
    return last if select.args[1] == last and view.value.shape[:last] == shape[:last] else None


def split_fused(flat: Flat) -> Flat:
    """linear(x, W) read only by slices that cover it --> one linear per slice, each with its part of W."""
    uses = readers(flat)
    made = {node.name: node for node in flat.nodes}
    plans = {}
    for node in flat.nodes:
        if node.op in ("linear", "matmul") and node.refs()[1] in flat.parameters:
            found = _cover(node, uses, flat)
            if found:
                plans[node.name] = found
    if not plans:
        return flat
    out = replace(flat, nodes=[], parameters=dict(flat.parameters), parts=dict(flat.parts))
    for node in flat.nodes:
        _emit_parts(node, made, plans, out)
    return out


def _cover(node: Node, uses: dict[str, list[Node]], flat: Flat) -> tuple[Node | None, list[Node]] | None:
    """The bias addition (if any) and the slices, when they tile the last dim of a linear's output."""
    after = uses.get(node.name, [])
    bias = None
    if len(after) == 1 and after[0].op == "add.Tensor" and after[0].refs()[-1] in flat.parameters:
        bias, after = after[0], uses.get(after[0].name, [])
    last = len(node.value.shape) - 1
    if len(after) < 2 or any(n.op != "slice" or n.args[1] != last for n in after):
        return None
    spans = sorted((int(str(n.args[2])), int(str(n.args[3]))) for n in after)
    tiles = spans[0][0] == 0 and spans[-1][1] == node.value.shape[last]
    return (bias, after) if tiles and all(a[1] == b[0] for a, b in pairwise(spans)) else None


def _emit_parts(node: Node, made: dict[str, Node], plans: dict[str, tuple[Node | None, list[Node]]], out: Flat) -> None:
    biases = {bias.name for bias, _ in plans.values() if bias is not None}
    if node.name in plans or node.name in biases:
        return
    source = made.get(node.refs()[0]) if node.op == "slice" else None
    bias = source if source is not None and source.name in biases else None
    product = made.get(source.refs()[0]) if bias is not None and source is not None else source
    if product is None or product.name not in plans:
        out.nodes.append(node)
        return
    start, stop = int(str(node.args[2])), int(str(node.args[3]))
    order = sorted(int(str(n.args[2])) for n in plans[product.name][1]).index(start)
    weight = product.refs()[1]
    dim = 0 if product.op == "linear" else 1
    part = _part(out, weight, Part(weight, dim, start, stop), order)
    name = node.name if bias is None else f"{node.name}p"
    out.nodes.append(replace(node, name=name, op=product.op, args=(product.args[0], Ref(part)), module=product.module))
    if bias is not None:
        shift = _part(out, bias.refs()[-1], Part(bias.refs()[-1], 0, start, stop), order)
        out.nodes.append(replace(node, op="add.Tensor", args=(Ref(name), Ref(shift)), module=product.module))


def _part(out: Flat, weight: str, part: Part, order: int) -> str:
    name = f"{weight}_part{order}"
    whole = out.parameters[weight]
    shape = tuple(part.stop - part.start if d == part.dim else size for d, size in enumerate(whole.shape))
    out.parameters[name] = Tensor(shape, whole.dtype, whole.grad)
    out.parts[name] = part
    return name


REWRITES: tuple[Callable[[Flat], Flat], ...] = (merge_views, select_to_slice, split_fused, drop_dead, merge_views)
