"""Elementwise ops: every label may be cut; sums of partial sums are partial sums."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from fourfold.ir.graph import Node
from fourfold.ir.ops.op import Op, Shapes

NAMES = (
    "abs add atan2 bitwise_and bitwise_not bitwise_or ceil clamp clamp_max clamp_min cos div eq elu erf exp exp2 expm1"
    " floor full_like ge gelu gt hardsigmoid hardswish hardtanh le leaky_relu lerp log log1p log2 log_sigmoid"
    " logical_and logical_not logical_or lt masked_fill maximum minimum mish mul ne neg ones_like pow reciprocal"
    " relu relu6 remainder round rsqrt rsub selu sigmoid sign silu sin softplus sqrt square sub tan tanh"
    " threshold where zeros_like addcmul addcdiv cast dropout detach"
).split()


def broadcast(node: Node, shapes: Shapes) -> str:
    """One line for any number of inputs that broadcast: `*, * -> *`."""
    return ", ".join("*" for _ in shapes) + " -> *"


def is_sum(node: Node) -> bool:
    """Whether partial sums may pass: sums of tensors, a negation, or a product with a number."""
    base = node.op.split(".")[0]
    if base in ("add", "sub"):
        return len(node.refs()) == 2
    return base == "neg" or (base in ("mul", "div") and len(node.refs()) == 1)


POINTWISE: Mapping[str, Op] = MappingProxyType(
    {name: Op(broadcast, "pointwise", linear=is_sum) for name in NAMES}
)
