"""Splits a fused weight whose product is taken apart: qkv, gate_up. Each part becomes a parameter that can be cut.

Followed through reshapes, transposes, slices and selects, every part of the product must be one run of its features,
and the parts must cover them. Which feature lands where is seen by moving their numbers the same way.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from fourfold.compiler.capture.flat import Flat
from fourfold.ir.graph import Node, Part, Ref, Tensor

MOVING = ("view", "permute", "slice", "select")


@dataclass(frozen=True, slots=True)
class Split:
    """A product, the addition of its bias if it has one, and for each part the node that holds it: (start, stop)."""

    product: Node
    bias: Node | None
    parts: dict[str, tuple[int, int]]


def split_fused(flat: Flat) -> Flat:
    """linear(x, W) taken apart --> one linear for each part, with its rows of W."""
    uses, values = flat.readers(), flat.values()
    splits: dict[str, Split] = {}
    gone: set[str] = set()
    for found in _agreed(uses, values, flat):
        splits.update(dict.fromkeys(found.parts, found))
        gone.update({found.product.name, found.bias.name if found.bias else found.product.name})
    if not splits:
        return flat
    out = replace(flat, nodes=[], parameters=dict(flat.parameters), parts=dict(flat.parts))
    for node in flat.nodes:
        if node.name in splits:
            _emit(node, splits[node.name], out)
        elif node.name not in gone:
            out.nodes.append(node)
    return out


def _agreed(uses: dict[str, list[Node]], values: dict[str, Tensor], flat: Flat) -> list[Split]:
    """The products that come apart, where all readers of their parameters take them apart alike."""
    found: list[Split] = []
    for weight in flat.parameters:
        readers = uses.get(weight, [])
        if not readers or any(n.op not in ("linear", "matmul") or n.refs()[1] != weight for n in readers):
            continue
        splits = [_split(node, uses, values, flat) for node in readers]
        spans = {s and tuple(sorted(s.parts.values())) for s in splits}
        shifts = {s.bias.refs()[1] for s in splits if s and s.bias}
        shared = any(len(uses[shift]) != len(readers) for shift in shifts)
        if len(spans) == 1 and not shared:
            found += [s for s in splits if s is not None]
    return found


def _split(product: Node, uses: dict[str, list[Node]], values: dict[str, Tensor], flat: Flat) -> Split | None:
    """How the product is taken apart, or None."""
    after = uses.get(product.name, [])
    bias = after[0] if len(after) == 1 and _is_bias(after[0], product, flat) else None
    root = bias or product
    width = product.value.shape[-1]
    numbers = torch.arange(width).reshape([1] * (len(product.value.shape) - 1) + [width])
    parts = _parts(root, numbers, uses, values)
    if parts is None or len(parts) < 2:
        return None
    spans = sorted(parts.values())
    ends = [0, *(stop for _, stop in spans)]
    covered = all(start == end for (start, _), end in zip(spans, ends, strict=False)) and ends[-1] == width
    return Split(product, bias, parts) if covered else None


def _is_bias(node: Node, product: Node, flat: Flat) -> bool:
    refs = node.refs()
    if node.op != "add.Tensor" or node.kwargs or len(refs) != 2 or refs[0] != product.name:
        return False
    return refs[1] in flat.parameters and flat.parameters[refs[1]].shape == product.value.shape[-1:]


def _parts(
    root: Node, numbers: torch.Tensor, uses: dict[str, list[Node]], values: dict[str, Tensor]
) -> dict[str, tuple[int, int]] | None:
    """The nodes below `root` that hold a run of its features each; None when some reader takes them otherwise."""
    found: dict[str, tuple[int, int]] = {}
    for node in uses.get(root.name, []):
        moved = _moved(node, numbers) if node.op in MOVING else None
        if moved is None:
            return None
        flatly = moved.flatten()
        if len(flatly) == numbers.numel():
            below = _parts(node, moved, uses, values)
            if below is None:
                return None
            found.update(below)
        elif len(flatly) and bool((flatly == torch.arange(int(flatly[0]), int(flatly[0]) + len(flatly))).all()):
            found[node.name] = (int(flatly[0]), int(flatly[0]) + len(flatly))
        else:
            return None
    return found


def _moved(node: Node, numbers: torch.Tensor) -> torch.Tensor | None:
    """What the node does to the numbers of the features of one token."""
    if node.op == "view":
        return (
            numbers.reshape([1 if size < 0 else size for size in node.value.shape]) if -1 in node.value.shape else None
        )
    dim = node.args[1]
    if node.op == "permute":
        assert isinstance(dim, tuple)
        return numbers.permute([int(str(d)) for d in dim])
    if node.op == "select":
        return numbers.select(int(str(dim)), int(str(node.args[2])))
    return numbers.narrow(int(str(dim)), int(str(node.args[2])), int(str(node.args[3])) - int(str(node.args[2])))


def _emit(node: Node, split: Split, out: Flat) -> None:
    """The part's own product (and bias), brought to the shape the node had."""
    start, stop = split.parts[node.name]
    order = sorted(set(split.parts.values())).index((start, stop))
    product, lead = split.product, split.product.value.shape[:-1]
    value = replace(node.value, shape=(*lead, stop - start))
    weight = _part(out, Part(product.refs()[1], 0 if product.op == "linear" else 1, start, stop), order)
    made = f"{node.name}p"
    out.nodes.append(replace(product, name=made, args=(product.args[0], Ref(weight)), value=value))
    if split.bias is not None:
        shift = _part(out, Part(split.bias.refs()[1], 0, start, stop), order)
        out.nodes.append(replace(split.bias, name=f"{made}b", args=(Ref(made), Ref(shift)), value=value))
        made = f"{made}b"
    _shaped(node, made, value, out)


def _shaped(node: Node, made: str, value: Tensor, out: Flat) -> None:
    """A view, and a permutation where features stand before the tokens."""
    shape = node.value.shape
    at = shape.index(-1)
    if all(size == 1 for size in shape[:at]):
        out.nodes.append(replace(node, op="view", args=(Ref(made),), kwargs=()))
        return
    rest = (*shape[:at], *shape[at + 1 :])
    first = replace(value, shape=(-1, *rest))
    out.nodes.append(replace(node, name=f"{made}v", op="view", args=(Ref(made),), kwargs=(), value=first))
    order = (*range(1, at + 1), 0, *range(at + 1, len(shape)))
    out.nodes.append(replace(node, op="permute", args=(Ref(f"{made}v"), order), kwargs=()))


def _part(out: Flat, part: Part, order: int) -> str:
    name = f"{part.of}_part{order}"
    whole = out.parameters[part.of]
    shape = tuple(part.stop - part.start if d == part.dim else size for d, size in enumerate(whole.shape))
    out.parameters[name] = Tensor(shape, whole.dtype, whole.grad)
    out.parts[name] = part
    return name
