"""Model FLOPs of a step: what MFU counts."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from fourfold.ir.graph import Block, Graph, Node
from fourfold.ir.ops import op_of, rule_for
from fourfold.ir.rule import WHOLE


def model_flops(graph: Graph, tokens: int, pairs: float) -> float:
    """Model FLOPs of one optimizer step: forward once, backward twice; causal attention by its pairs, half a square."""
    total = 0.0
    for name, block, node in _nodes(graph):
        kind, count, values = op_of(node).kind, graph.counts[name], block.values()
        if kind == "matmul":
            total += count * 6.0 * rule_for(node, values, WHOLE).points(tokens)
        if kind == "loss":
            total += count * 6.0 * prod(values[node.refs()[1]].shape) * tokens
        if kind == "attention":
            _, heads, _, width = values[node.refs()[0]].shape
            total += count * 12.0 * heads * width * pairs * (1 if dict(node.kwargs)["causal"] else 2)
    return total


def _nodes(graph: Graph) -> Iterator[tuple[str, Block, Node]]:
    return ((name, block, node) for name, block in graph.blocks.items() for node in block.nodes)
