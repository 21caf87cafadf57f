"""What a block's backward keeps: the fewest bytes from which everything it needs can be computed again for free.

A minimum cut. Values made by products, mixers and collectives cannot be made again; elementwise chains can, inside the
kernels that use them. Source: the recompute-aware partitioner of AOTAutograd (Torch 2.0), solved by networkx here.
"""

from __future__ import annotations

from collections.abc import Callable

import networkx as nx

from fourfold.ir.graph import Block, Node
from fourfold.ir.ops import op_of
from fourfold.ir.rule import Q, State

Size = Callable[[str, State], float]

LINEAR = ("add", "sub", "neg", "cast", "sum")
"""Elementwise ops whose backward needs none of their inputs."""


def saved_bytes(block: Block, made: dict[str, State], needs: dict[str, tuple[State, ...]], size: Size) -> float:
    """Bytes one call keeps from forward to backward when nothing is recomputed; parameters are not counted."""
    graph = nx.DiGraph()
    graph.add_nodes_from(("source", "sink"))
    for name in block.inputs:
        _value(graph, name, size(name, made[name]), keep=True)
    for node in block.nodes:
        fusible = op_of(node).kind in ("pointwise", "norm", "free")
        _value(graph, node.name, size(node.name, made[node.name]), keep=not fusible)
        for name, state in zip(node.refs(), needs[node.name], strict=True):
            if name in block.parameters or name in block.buffers:
                continue
            key = _arrival(graph, name, made[name], state, size)
            if fusible:
                graph.add_edge((key, "out"), (node.name, "in"))
            if _needed(node, name, block):
                graph.add_edge((key, "out"), "sink")
        if op_of(node).kind == "attention":
            graph.add_edge((node.name, "out"), "sink")
    return float(nx.minimum_cut_value(graph, "source", "sink"))


def _value(graph: nx.DiGraph, name: str, size: float, *, keep: bool) -> None:
    graph.add_edge((name, "in"), (name, "out"), capacity=size)
    if keep:
        graph.add_edge("source", (name, "in"))


def _arrival(graph: nx.DiGraph, name: str, made: State, needed: State, size: Size) -> str:
    """The value as its reader gets it: a gathered copy is a value of its own, which only the link can make again."""
    if made == needed or (made.kind == "R" and needed == Q):
        return name
    key = f"{name}>{needed}"
    if (key, "in") not in graph:
        _value(graph, key, size(name, needed), keep=made.kind != "R")
        if made.kind == "R":
            graph.add_edge((name, "out"), (key, "in"))
    return key


def _needed(node: Node, name: str, block: Block) -> bool:
    """Whether the backward of `node` reads its input `name`."""
    if not node.value.grad:
        return False
    kind, base = op_of(node).kind, node.op.split(".")[0]
    if kind in ("matmul", "gather"):
        return block.value(node.refs()[1 - node.refs().index(name)]).grad
    if kind == "loss" or kind == "free" or base in LINEAR:
        return False
    return base not in ("mul", "div") or len(node.refs()) > 1
