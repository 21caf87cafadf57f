"""Matrix products, embeddings, attention and the loss: the ops that hold nearly all FLOPs."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from fourfold.ir.graph import Node
from fourfold.ir.ops.op import Op, Shapes

# Two ways to cut attention by heads: with its key/value head (g), or alone with all key/value heads at hand (h), for
# axes longer than the number of key/value heads.
ATTENTION = (
    "b (g r) !s !e, b g !s !e, b g !s !f -> b (g r) !s !f",
    "b h !s !e, b !k !s !e, b !k !s !f -> b h !s !f",
)


def einsum(node: Node, shapes: Shapes) -> str:
    """The equation is the rule: `bsd,dhe->bshe` reads `b s d, d h e -> b s h e`."""
    left, right = str(node.args[1]).split("->")
    return ", ".join(" ".join(part) or "." for part in left.split(",")) + " -> " + (" ".join(right) or ".")


def loss(node: Node, shapes: Shapes) -> str:
    """Hidden states, head weight, targets, weights, then parameters of what follows: [v], [1] or a number."""
    vocabulary = shapes[1][:1]
    extra = ("&v" if shape == vocabulary else "!one" if shape else "." for shape in shapes[4:])
    return ", ".join(("b t !d", "&v !d", "t", "t", *extra)) + " -> ."


CONTRACTIONS: Mapping[str, Op] = MappingProxyType(
    {
        "linear": Op("* d, f d -> * f", "matmul"),
        "matmul": Op("* d, d f -> * f", "matmul"),
        "bmm": Op("* i k, * k j -> * i j", "matmul"),
        "einsum": Op(einsum, "matmul"),
        "embedding": Op("v d, * -> * d", "gather"),
        "attention": Op(lambda node, shapes: ATTENTION, "attention"),
        "loss": Op(loss, "loss"),
    }
)
