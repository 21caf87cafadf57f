"""Elementwise ops: every label may be cut; sums of partial sums are partial sums."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from fourfold.ir.graph import Node
from fourfold.ir.ops.op import Op, Shapes

NAMES = """
    abs acos acosh add addcdiv addcmul asin asinh atan atan2 atanh bitwise_and bitwise_not bitwise_or bitwise_xor cast
    ceil celu clamp clamp_max clamp_min copysign cos cosh detach div dropout elu eq erf erfc erfinv exp exp2 expm1
    floor floor_divide fmax fmin fmod frac full_like ge gelu gt hardshrink hardsigmoid hardswish hardtanh hypot isfinite
    isinf isnan le leaky_relu lerp log log10 log1p log2 log_sigmoid logaddexp logical_and logical_not logical_or
    logical_xor logit lt masked_fill maximum minimum mish mul nan_to_num ne neg ones_like pow reciprocal relu relu6
    remainder round rsqrt rsub selu sgn sigmoid sign silu sin sinc sinh softplus softshrink sqrt square sub tan tanh
    threshold trunc where xlogy zeros_like
"""


def broadcast(node: Node, shapes: Shapes) -> str:
    """One line for any number of inputs that broadcast: `*, * -> *`."""
    return ", ".join("*" for _ in shapes) + " -> *"


def is_sum(node: Node) -> bool:
    """Whether partial sums may pass: sums of tensors, a negation, or a product with a number."""
    base = node.op.split(".")[0]
    if base in ("add", "sub"):
        return len(node.refs()) == 2
    scaled = base in ("mul", "div") and len(node.refs()) == 1 and not any(k == "rounding_mode" for k, _ in node.kwargs)
    return base == "neg" or scaled


POINTWISE: Mapping[str, Op] = MappingProxyType(
    {name: Op(broadcast, "pointwise", linear=is_sum) for name in NAMES.split()}
)
