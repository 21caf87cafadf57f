"""All op tables, and the rules of one node."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from fourfold.ir.graph import Node, Tensor
from fourfold.ir.ops.contraction import CONTRACTIONS
from fourfold.ir.ops.normalise import NORMALISATIONS
from fourfold.ir.ops.op import Op
from fourfold.ir.ops.pointwise import POINTWISE
from fourfold.ir.ops.shape import SHAPES
from fourfold.ir.rule import Rule, bind

TABLES: tuple[Mapping[str, Op], ...] = (CONTRACTIONS, NORMALISATIONS, POINTWISE, SHAPES)
OPS: Mapping[str, Op] = MappingProxyType({name: op for table in TABLES for name, op in table.items()})
UNKNOWN = Op("", "pointwise")


def op_of(node: Node) -> Op:
    """The table entry of a node's op; `UNKNOWN` (computed whole) when there is none."""
    return OPS.get(node.op.split(".")[0], UNKNOWN)


def rules(node: Node, values: Mapping[str, Tensor]) -> tuple[Rule, ...]:
    """The rules of one node, alternatives in order; an unknown op gets one that cuts nothing."""
    op = op_of(node)
    shapes = tuple(values[name].shape for name in node.refs())
    if op is UNKNOWN:
        fixed = ", ".join(" ".join(f"!i{k}x{i}" for i in range(len(s))) or "." for k, s in enumerate(shapes))
        right = " ".join(f"!o{i}" for i in range(len(node.value.shape)))
        return (bind(f"{fixed} -> {right or '.'}", shapes, node.value.shape),)
    lines = op.line if isinstance(op.line, str) else op.line(node, shapes)
    linear = op.linear if isinstance(op.linear, bool) else op.linear(node)
    texts = (lines,) if isinstance(lines, str) else lines
    return tuple(bind(text, shapes, node.value.shape, linear=linear) for text in texts)


def rule_for(node: Node, values: Mapping[str, Tensor], cut: str) -> Rule:
    """The alternative that knows `cut`; the first one for "whole" and "partial"."""
    found = rules(node, values)
    return next((rule for rule in found if cut in rule.sizes), found[0])
