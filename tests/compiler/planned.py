"""Plans by hand, with prices that only say which cuts are cheaper: the planner's own choice is not what is proven."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import nn

from fourfold.compiler.capture import capture
from fourfold.compiler.models.gpt import GPT, GPTConfig
from fourfold.compiler.models.llama import Llama, LlamaConfig
from fourfold.ir.graph import Block, Graph, Node
from fourfold.ir.mesh import Mesh
from fourfold.ir.ops import op_of
from fourfold.ir.plan import Layout, Plan
from fourfold.ir.rule import Rule
from fourfold.ir.workload import Workload
from fourfold.passes.cutting.cutting import Prices, cut

MANY = 10**7
"""Tokens of a micro-step that make cutting the tokens of norms worth its latency (Megatron's sequence parallelism)."""
FEW = 1024


def prices(tp: int, tokens: int) -> Prices:
    """Prices of a GPU-like machine: 400 TFLOP/s, 3 TB/s, links of 300 GB/s and 10 us."""

    def op(node: Node, rule: Rule, label: str, block: Block) -> float:
        share = 1 if label in ("whole", "partial") else tp
        kind = op_of(node).kind
        if kind in ("matmul", "loss"):
            return 6 * rule.points(tokens) / share / 400e12
        elements = math.prod(tokens if size == -1 else size for size in node.value.shape)
        return 0.0 if kind == "free" else 1e-4 / share if kind == "attention" else 8 * elements / share / 3e12

    def move(kind: str, size: float) -> float:
        return 1e-5 + (2 if kind == "all_reduce" else 1) * size * (tp - 1) / tp / 300e9

    return Prices(op, move, tokens)


def plan_for(
    model: nn.Module | Graph, mesh: Mesh, *, zero: int = 3, recompute: str = "none", tokens: int = FEW, **rest: Any
) -> Plan:
    """A plan of `model` captured in bfloat16, as plans usually are; every tensor that can be cut is."""
    graph = model if isinstance(model, Graph) else capture(model, torch.bfloat16)
    layouts = (
        dict(cut(graph, mesh.tp, prices(mesh.tp, tokens))[0]) if mesh.tp > 1 else {n: Layout() for n in graph.blocks}
    )
    how = (recompute,) * len(graph.calls)
    work = Workload.fixed(length=64, sequences=4)
    return Plan(graph, {}, work, mesh=mesh, zero=zero, recompute=how, layouts=layouts, **rest)


@functools.cache
def llama(layers: int = 2) -> nn.Module:
    """Grouped-query attention; every width can be cut four ways, no shard of three is even."""
    torch.manual_seed(0)
    sizes = {"vocabulary": 64, "width": 32, "heads": 8, "kv_heads": 4, "feed_forward": 48}
    return Llama(LlamaConfig(layers=layers, **sizes))


@functools.cache
def gpt(layers: int = 2) -> nn.Module:
    """Learned positions, biases, a fused projection, a tied head."""
    torch.manual_seed(0)
    return GPT(GPTConfig(layers=layers, vocabulary=64, width=32, heads=4, context=48))
