"""What a block's backward keeps: the fewest bytes from which everything it needs can be computed again for free.

A minimum cut. Values made by products, mixers and collectives cannot be made again; elementwise chains can, inside the
kernels that use them. Source: the recompute-aware partitioner of AOTAutograd (Torch 2.0), solved by networkx here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import networkx as nx

from fourfold.ir.graph import Block, Node
from fourfold.ir.ops import op_of
from fourfold.ir.rule import Q, State

Size = Callable[[str, State], float]

LINEAR = ("add", "sub", "neg", "cast", "sum")
"""Elementwise ops whose backward needs none of their inputs."""


def saved_values(
    block: Block, made: Mapping[str, State], needs: Mapping[str, tuple[State, ...]], size: Size
) -> tuple[tuple[str, State], ...]:
    """What one call keeps from forward to backward when nothing is recomputed: values, each in one state.

    Parameters are not counted, nor what attention keeps of its own. `size` is in bytes a token: all values grow alike.
    """
    graph = nx.DiGraph()
    graph.add_nodes_from(("source", "sink"))
    for name in block.inputs:
        _value(graph, (name, made[name]), size, keep=True)
    for node in block.nodes:
        fusible = op_of(node).kind in ("pointwise", "norm", "free")
        here = (node.name, made[node.name])
        _value(graph, here, size, keep=not fusible)
        for name, state in zip(node.refs(), needs[node.name], strict=True):
            if name in block.parameters or name in block.buffers:
                continue
            key = _arrival(graph, (name, made[name]), state, size)
            if fusible:
                graph.add_edge((key, "out"), (here, "in"))
            if _needed(node, name, block):
                graph.add_edge((key, "out"), "sink")
        if op_of(node).kind == "attention":
            graph.add_edge((here, "out"), "sink")
    _, (near, far) = nx.minimum_cut(graph, "source", "sink")
    keys = [at[0] for at in graph if isinstance(at, tuple) and at[1] == "in"]
    return tuple(key for key in keys if (key, "in") in near and (key, "out") in far)


def _value(graph: nx.DiGraph, key: tuple[str, State], size: Size, *, keep: bool) -> None:
    graph.add_edge((key, "in"), (key, "out"), capacity=size(*key))
    if keep:
        graph.add_edge("source", (key, "in"))


def _arrival(graph: nx.DiGraph, key: tuple[str, State], needed: State, size: Size) -> tuple[str, State]:
    """The value as its reader gets it: a gathered copy is a value of its own, which only the link can make again."""
    name, made = key
    if made == needed or (made.kind == "R" and needed == Q):
        return key
    copy = (name, needed)
    if (copy, "in") not in graph:
        _value(graph, copy, size, keep=made.kind != "R")
        if made.kind == "R":
            graph.add_edge((key, "out"), (copy, "in"))
    return copy


def _needed(node: Node, name: str, block: Block) -> bool:
    """Whether the backward of `node` reads its input `name`."""
    if not node.value.grad:
        return False
    kind, base, reads = op_of(node).kind, node.op.split(".")[0], node.refs()
    if kind in ("matmul", "gather"):
        return any(block.value(other).grad for other in reads if other != name) or reads.count(name) > 1
    if kind == "loss":
        # Its forward already makes the gradient of the hidden states, which takes their place until backward.
        return name == reads[0] and block.value(name).grad
    if kind == "free" or base in LINEAR:
        return False
    return base not in ("mul", "div") or len(node.refs()) > 1
