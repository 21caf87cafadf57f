"""Model FLOPs of a step: what MFU counts."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import TypedDict

from fourfold.ir.graph import Block, Graph, Node
from fourfold.ir.ops import op_of, rule_for
from fourfold.ir.rule import WHOLE
from fourfold.ir.workload import Workload


class Sight(TypedDict):
    """Which keys a query sees: those not behind it, those within a window."""

    causal: bool
    window: int | None


def model_flops(graph: Graph, workload: Workload) -> float:
    """Model FLOPs of one optimizer step: forward once, backward twice; attention by the pairs it sees."""
    total, tokens = 0.0, workload.tokens
    for name, block, node in _nodes(graph):
        kind, count, values = op_of(node).kind, graph.counts[name], block.values()
        if kind == "matmul":
            total += count * 6.0 * rule_for(node, values, WHOLE).points(tokens)
        if kind == "loss":
            total += count * 6.0 * prod(values[node.refs()[1]].shape) * tokens
        if kind == "attention":
            _, heads, _, width = values[node.refs()[0]].shape
            total += count * 12.0 * heads * width * workload.visible(**sight(node))
    return total


def sight(node: Node) -> Sight:
    """What an attention sees of its document."""
    given = dict(node.kwargs)
    window = given.get("window")
    assert window is None or isinstance(window, int), window
    return {"causal": bool(given["causal"]), "window": window}


def _nodes(graph: Graph) -> Iterator[tuple[str, Block, Node]]:
    return ((name, block, node) for name, block in graph.blocks.items() for node in block.nodes)
