"""Tiny models under any mesh, to run on gloo processes: captured once in this process, run in its children."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from fourfold.backends.program import Options, Program
from fourfold.compiler.capture import capture
from fourfold.compiler.models.gpt import GPT, GPTConfig
from fourfold.compiler.models.llama import Llama, LlamaConfig
from fourfold.ir.graph import Graph
from fourfold.ir.mesh import Mesh
from fourfold.ir.ops import op_of
from fourfold.ir.plan import Layout, Plan, Precision
from fourfold.ir.workload import Workload
from fourfold.passes.cutting.cutting import Prices, cut

TOKENS = 8192
VOCABULARY = 58
Make = Callable[[], nn.Module]


def llama(heads: int = 2, kv_heads: int = 2, frozen: bool = False) -> nn.Module:
    """Odd sizes on purpose: the shards of two and of three ranks differ in rows."""
    torch.manual_seed(0)
    config = LlamaConfig(VOCABULARY, 20, layers=2, heads=heads, kv_heads=kv_heads, feed_forward=34)
    model = Llama(config)
    model.head.weight.requires_grad_(not frozen)
    return model


def gpt(dropout: float = 0.0) -> nn.Module:
    """A fused projection, biases, a tied head."""
    torch.manual_seed(0)
    return GPT(GPTConfig(layers=2, vocabulary=VOCABULARY, width=20, heads=2, context=64, dropout=dropout))


def dropping() -> nn.Module:
    return gpt(dropout=0.2)


@cache
def captured(make: Make, dtype: str) -> Graph:
    return capture(make(), getattr(torch, dtype), cached=False)


@cache
def layouts(make: Make, dtype: str, tp: int) -> dict[str, Layout]:
    """Cuts of whatever can be cut; the prices only have to favour cutting."""

    def op(node: Any, rule: Any, label: str, block: Any) -> float:
        share = 1 if label in ("whole", "partial") else tp
        if op_of(node).kind in ("matmul", "loss"):
            return float(rule.points(TOKENS)) / share / 1e9
        return 0.0 if op_of(node).kind == "free" else 1e-3 / share

    return dict(cut(captured(make, dtype), tp, Prices(op, lambda move, size: 1e-5 + size / 1e12, TOKENS))[0])


@dataclass(frozen=True, slots=True)
class Case:
    """One model under one plan. `program()` is for the processes of `backends.communication.processes.run`."""

    make: Make
    plan: Plan

    @property
    def ranks(self) -> int:
        return self.plan.mesh.ranks

    def program(self) -> Program:
        return Program(self.make(), self.plan, self.plan.graph, Options())


def case(make: Make, dp: int = 1, tp: int = 1, zero: int = 3, dtype: str = "float64") -> Case:
    plan = Plan(
        captured(make, dtype),
        {},
        Workload.fixed(length=16, sequences=4),
        Mesh(dp, tp),
        zero,
        Precision(dtype, dtype, dtype),
        capacity=64,
        bucket=4 * tp,
        layouts=layouts(make, dtype, tp) if tp > 1 else {},
    )
    return Case(make, plan)


def batch(step: int) -> list[list[int]]:
    """The global batch of one step: ragged, with a document of one token."""
    random = torch.Generator().manual_seed(step)
    return [torch.randint(0, VOCABULARY, (n,), generator=random).tolist() for n in (13, 1, 9, 16, 5)]


def train(program: Program, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    """The losses of some steps with clipping."""
    losses = []
    for step in steps:
        losses.append(program.step(batch(step)))
        program.clip_grad_norm_(0.5)
        optimizer.step()
        optimizer.zero_grad()
    return losses


def plain(tensors: dict[str, torch.Tensor]) -> dict[str, list[Any]]:
    """As plain values, which processes may return; equal exactly if the tensors are."""
    return {name: value.tolist() for name, value in tensors.items()}


@dataclass(frozen=True, slots=True)
class Tiny:
    """What this file offers to tests."""

    llama: Make = llama
    gpt: Make = gpt
    dropping: Make = dropping
    case: Callable[..., Case] = case
    batch: Callable[[int], list[list[int]]] = batch
    train: Callable[..., list[float]] = train
    plain: Callable[..., dict[str, list[Any]]] = plain


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    return Tiny()
