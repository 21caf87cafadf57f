"""Replaces the head by the loss: logits = suffix(linear(x, W)) --> loss(x, W, targets, weights)."""

from __future__ import annotations

from dataclasses import replace

from fourfold.compiler.capture.flat import Flat
from fourfold.hardware.errors import ModelError
from fourfold.ir.graph import Node, Ref, Tensor
from fourfold.ir.ops import OPS


def with_loss(flat: Flat) -> tuple[Flat, tuple[Node, ...]]:
    """The graph ending in one `loss` node, and the elementwise nodes that turn the product into logits.

    Raises ModelError when the logits are not made by a linear layer, or what follows it mixes the vocabulary.
    """
    made = {node.name: node for node in flat.nodes}
    suffix: list[Node] = []
    name = flat.output
    while name in made and made[name].op not in ("linear", "matmul"):
        node = made[name]
        _check(node, flat, made)
        suffix.insert(0, node)
        name = node.refs()[0]
    head = made.get(name)
    if head is None or head.refs()[1] not in flat.parameters:
        raise ModelError(
            "the logits must come from a linear layer: hidden states times a parameter [vocabulary, width]"
        )
    suffix = [n for n in suffix if n.op != "cast"]
    extra = tuple(Ref(r) for n in suffix for r in n.refs() if r in flat.parameters)
    loss = Node(
        "loss",
        "loss",
        (head.args[0], head.args[1], Ref("targets"), Ref("weights"), *extra),
        (("transposed", head.op == "matmul"),),
        Tensor((), "float32", True),
        head.module,
    )
    gone = {head.name, *(n.name for n in suffix)}
    nodes = [n for n in flat.nodes if n.name not in gone]
    return replace(flat, nodes=[*nodes, loss], output="loss"), _chain(head.name, suffix)


def _check(node: Node, flat: Flat, made: dict[str, Node]) -> None:
    entry = OPS.get(node.op.split(".")[0])
    others = [r for r in node.refs()[1:] if r not in flat.parameters]
    elementwise = (
        entry is not None
        and entry.kind == "pointwise"
        and node.op.split(".")[0] not in ("dropout", "cat", "stack", "sum", "mean")
    )
    if not elementwise or others:
        raise ModelError(
            f"{node.module or 'the model'} applies {node.op} to the logits: only elementwise functions of each logit may follow the head"
        )


def _chain(head: str, suffix: list[Node]) -> tuple[Node, ...]:
    """The suffix with the head's output called `logits`."""
    names = {head: "logits"}
    out = []
    for i, node in enumerate(suffix):
        first, *rest = node.args
        before = node.refs()[0]
        source = Ref(names.get(before, names[head] if i == 0 else before))
        names[node.name] = f"logits{i + 1}"
        out.append(replace(node, name=f"logits{i + 1}", args=(source, *rest)))
        assert isinstance(first, Ref)
    return tuple(out)
