"""Replaces the head by the loss: logits = suffix(linear(x, W)) --> loss(x, W, targets, weights)."""

from __future__ import annotations

from dataclasses import replace

from fourfold.compiler.capture.flat import Flat, uncounted
from fourfold.compiler.capture.rewrite import renamed
from fourfold.hardware.errors import ModelError
from fourfold.ir.graph import Node, Ref, Tensor
from fourfold.ir.ops.pointwise import POINTWISE

NOT_AFTER = ("dropout", "detach")


def with_loss(flat: Flat) -> tuple[Flat, tuple[Node, ...]]:
    """The graph ending in one `loss` node, and the elementwise nodes that turn the product into logits.

    Raises ModelError when the logits are not made by a linear layer, or what follows it mixes the vocabulary.
    """
    head, after = _head(flat)
    scalars = _scalars(flat)
    after = [renamed(n, scalars) for n in after]
    extra = dict.fromkeys(r for n in after for r in n.refs() if r in flat.parameters)
    loss = Node(
        "loss",
        "loss",
        (head.args[0], head.args[1], Ref("targets"), Ref("weights"), *(Ref(r) for r in extra)),
        (("transposed", head.op == "matmul"),),
        Tensor((), "float32", True),
        head.module,
    )
    gone = {head.name, *(n.name for n in after)}
    nodes = [n for n in flat.nodes if n.name not in gone]
    return replace(flat, nodes=[*nodes, loss], output="loss"), _chain(head.name, after)


def _head(flat: Flat) -> tuple[Node, list[Node]]:
    """The last product with a parameter, and the nodes between it and the logits."""
    made = {node.name: node for node in flat.nodes}
    output = made[flat.output]
    needed, queue = {output.name}, [output]
    while queue:
        for name in queue.pop().refs():
            if name in made and name not in needed:
                needed.add(name)
                queue.append(made[name])
    products = [n for n in flat.nodes if n.name in needed and n.op in ("linear", "matmul")]
    head = next((n for n in reversed(products) if n.refs()[1] in flat.parameters), None)
    if head is None or head.value.shape != output.value.shape:
        raise ModelError(
            "the logits must come from a linear layer: hidden states times a parameter [vocabulary, width]"
        )
    reached, after = {head.name}, []
    for node in flat.nodes:
        if node.name in needed and any(r in reached for r in node.refs()):
            _check(node, reached, flat)
            reached.add(node.name)
            after.append(node)
    return head, after


def _scalars(flat: Flat) -> dict[str, Ref]:
    """Parameters of one number, by the name under which they are read."""
    return {
        n.name: Ref(n.refs()[0])
        for n in flat.nodes
        if n.op == "view" and n.refs()[0] in flat.parameters and not n.value.shape
    }


def _check(node: Node, reached: set[str], flat: Flat) -> None:
    base = node.op.split(".")[0]
    fitting = [r for r in flat.parameters if flat.parameters[r].shape in ((), (1,), node.value.shape[-1:])]
    fitting += _scalars(flat)
    others = [r for r in node.refs() if r not in reached and r not in fitting]
    if base not in POINTWISE or base in NOT_AFTER or others:
        raise ModelError(
            f"{uncounted(node.module) or 'the model'} applies {node.op} to the logits: only functions of each logit "
            "alone, with numbers and parameters [vocabulary], may follow the head"
        )


def _chain(head: str, after: list[Node]) -> tuple[Node, ...]:
    """The suffix with the head's output called `logits`; changes of dtype are left out, as the loss sums in float32."""
    names = {head: Ref("logits")}
    out: list[Node] = []
    for node in after:
        if node.op == "cast":
            names[node.name] = names[node.refs()[0]]
            continue
        fresh = f"logits{len(out) + 1}"
        out.append(replace(renamed(node, names), name=fresh))
        names[node.name] = Ref(fresh)
    return tuple(out)
