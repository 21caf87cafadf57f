"""The search against all there is: every mesh, ZeRO stage, micro-step count and recompute of every layer, priced."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import pytest
import torch

from fourfold.compiler.api import plan_graph
from fourfold.compiler.capture import capture
from fourfold.compiler.models.llama import Llama, LlamaConfig
from fourfold.hardware import Machine, load
from fourfold.hardware.errors import InfeasibleError, UsageError
from fourfold.ir.graph import Graph
from fourfold.ir.mesh import Mesh
from fourfold.ir.plan import RECOMPUTE, Plan, Precision
from fourfold.ir.workload import Workload
from fourfold.passes.price.price import priced

SEQUENCES, LENGTH = 8, 8192


def graph() -> Graph:
    """Two wide layers, so that memory and every kind of communication matter."""
    with torch.device("meta"):
        model = Llama(LlamaConfig(32000, 8192, 2, 64, 8, 28672))
    return capture(model, torch.bfloat16)


def everything(plan: Plan, layouts: dict[int, Plan], ranks: int) -> Iterator[Plan]:
    """All settings; the cuts of each tensor degree are the flow program's own."""
    mixing = [any(n.op == "attention" for n in plan.graph.blocks[c.block].nodes) for c in plan.graph.calls]
    choices = [RECOMPUTE if mixes else ("none",) for mixes in mixing]
    for tp, cut in layouts.items():
        pool = ranks // tp
        for zero, steps in product(range(4) if pool > 1 else (0,), range(1, SEQUENCES + 1)):
            share = -(-SEQUENCES // (pool * steps))
            if -(-SEQUENCES // (pool * share)) != steps:
                continue
            for modes in product(*choices):
                yield replace(
                    cut,
                    mesh=Mesh(dp=pool, tp=tp),
                    zero=zero,
                    micro_steps=steps,
                    capacity=share * LENGTH,
                    recompute=modes,
                    pins={},
                )


def smaller(machine: Machine, share: float) -> Machine:
    """The machine with less memory a device, so that something must be given up."""
    return replace(machine, device=replace(machine.device, usable=machine.device.usable * share))


@pytest.mark.parametrize(
    ("ranks", "share"), ((1, 1.0), (2, 1.0), (3, 1.0), (4, 1.0), (1, 0.7), (2, 0.4), (3, 0.4), (4, 0.4))
)
def test_nothing_beats_the_search(ranks: int, share: float) -> None:
    machine, whole = smaller(load(f"dgx-h200@{ranks}"), share), graph()
    workload = Workload.fixed(length=LENGTH, sequences=SEQUENCES)
    layouts = {}
    for tp in (n for n in range(1, ranks + 1) if ranks % n == 0):
        try:
            pinned = plan_graph(whole, workload, machine=machine, precision=Precision.bf16, pins={"tp": tp})
            layouts[tp] = pinned.plan
        except (InfeasibleError, UsageError):  # too large, or heads that a pinned degree cannot cut
            continue
    answer = plan_graph(whole, workload, machine=machine, precision=Precision.bf16)
    rivals = [priced(plan, machine) for plan in everything(answer.plan, layouts, ranks)]
    fitting = [rival.estimate().step for rival in rivals if rival.memory().fits(machine.device)]
    assert fitting and answer.estimate.step <= min(fitting) * (1 + 1e-6)
