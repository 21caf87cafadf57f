"""Published training runs: what was trained on what and how, the seconds of a step, its layout as a plan of ours."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path

import torch
from frameworks import PINS, framed

from fourfold.compiler.capture import capture
from fourfold.compiler.models.gpt import GPT, GPTConfig
from fourfold.compiler.models.llama import Llama, LlamaConfig
from fourfold.compiler.pipeline import PASSES
from fourfold.costmodel.kernel import ATTENTION_BACKWARD, matmul_fit, matmul_time, peak_rate
from fourfold.hardware import load
from fourfold.hardware.machine import AttentionFit, Device
from fourfold.hardware.topology import Machine
from fourfold.ir.graph import Graph
from fourfold.ir.mesh import Mesh
from fourfold.ir.plan import Plan, Precision
from fourfold.ir.workload import Workload
from fourfold.passes.price.costs import Costs
from fourfold.passes.price.price import Priced
from fourfold.passes.sequence.shared import RATES

DATA = Path(__file__).parent / "data"

PRECISIONS = {
    "fp16": Precision("float32", "float16", "float16"),
    "bf16": Precision("float32", "bfloat16", "bfloat16"),
    "bf16-amp": Precision.bf16,
}
"""By the words of the data: gradients are reduced as they are computed, or in float32."""

SCORES = (4.0, 4.5)
"""Times that the kernels between the products of an unfused attention move its scores, forward and backward.

Megatron-LM's causal softmax (fused_kernels/scaled_upper_triang_masked_softmax.h) reads half of them and writes all:
1.5; dropout reads and writes them, and a mask of one byte: 2.5. Backward, softmax reads half of gradients and
probabilities and writes all: 2, dropout 2.5.
"""

PRODUCTS = (2, 4)
"""Products of an unfused attention, forward and backward: each writes or reads all scores once."""


@dataclass(frozen=True, slots=True)
class Run:
    """One published run; `seconds` are those of its step, sizes and degrees as published."""

    id: str
    source: str
    group: str
    model: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    feed_forward: int
    vocabulary: int
    length: int
    sequences: int
    micro_batch: int
    machine: str
    gpus: int
    tp: int
    pp: int
    virtual: int
    dp: int
    zero: int
    recompute: str
    framework: str
    precision: str
    attention: str
    seconds: float

    @property
    def layout(self) -> str:
        """In short, for a table."""
        mesh = Mesh(self.dp, self.tp, self.pp)
        rounds = f" x{self.virtual}" if self.virtual > 1 else ""
        return f"{mesh}{rounds} z{self.zero} b{self.micro_batch}"

    @property
    def schedule(self) -> str:
        """The name of its pipeline schedule."""
        return f"interleaved-{self.virtual}" if self.virtual > 1 else "1f1b"


def runs(path: Path = DATA / "published_runs.csv") -> Iterator[Run]:
    """All rows of the data."""
    kinds = {f.name: {"int": int, "float": float}.get(str(f.type), str) for f in fields(Run)}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            yield Run(**{name: kind(row[name]) for name, kind in kinds.items()})


def graph_of(run: Run) -> Graph:
    """The graph of a model of its sizes."""
    sizes = (run.model, run.layers, run.width, run.heads, run.kv_heads, run.feed_forward, run.vocabulary, run.length)
    return _graph(*sizes, PRECISIONS[run.precision].compute)


@lru_cache(maxsize=64)
def _graph(
    model: str,
    layers: int,
    width: int,
    heads: int,
    kv: int,
    feed_forward: int,
    vocabulary: int,
    length: int,
    dtype: str,
) -> Graph:
    with torch.device("meta"):
        if model == "gpt":
            return capture(GPT(GPTConfig(vocabulary, width, layers, heads, context=length)), getattr(torch, dtype))
        config = LlamaConfig(vocabulary, width, layers, heads, kv, feed_forward)
        return capture(Llama(config), getattr(torch, dtype))


def machine_of(run: Run, efficiency: float = 1.0) -> Machine:
    """Its machine, with products at `efficiency` of what the profile says; attention of several kernels where it had
    that: its products at the rate of products, its scores through memory."""
    machine = _machine(run.machine, run.gpus)
    dtype = RATES[PRECISIONS[run.precision].compute]
    device = machine.device
    fit = matmul_fit(dtype, device)
    device = replace(
        device,
        matmul={**device.matmul, dtype: replace(fit, compute=fit.compute * efficiency)},
        attention_forward=replace(device.attention_forward, ceiling=device.attention_forward.ceiling * efficiency),
        attention_backward=replace(device.attention_backward, ceiling=device.attention_backward.ceiling * efficiency),
    )
    if run.attention == "unfused":
        forward, backward = (_unfused(device, dtype, run.width // run.heads, backward=b) for b in (False, True))
        device = replace(device, attention_forward=forward, attention_backward=backward)
    return replace(machine, device=device)


@lru_cache(maxsize=64)
def _machine(name: str, gpus: int) -> Machine:
    return load(f"{name}:{gpus // 8}", folders=(DATA,))


def _unfused(device: Device, dtype: str, head: int, *, backward: bool) -> AttentionFit:
    """Attention that multiplies the whole square, the half that is masked too, and moves its scores of two bytes.

    Its efficiency is counted in causal pairs, half of the square, and in the products of a fused backward.
    """
    fit, reached = matmul_fit(dtype, device), device.stream.memory * device.bandwidth
    product = matmul_time(2.0 * head, 2.0, dtype, device) - fit.overhead
    pair = PRODUCTS[backward] * product + 2.0 * SCORES[backward] / reached
    counted = 2.0 * head * (ATTENTION_BACKWARD if backward else 1.0)
    return AttentionFit(counted / pair / peak_rate(dtype, device), 0.0, device.attention_forward.overhead)


def asked(run: Run, machine: Machine) -> Plan:
    """The plan that names all but its layout."""
    workload = Workload.fixed(length=run.length, sequences=run.sequences)
    return Plan(graph_of(run), machine.snapshot(), workload, precision=PRECISIONS[run.precision])


def pinned(run: Run, machine: Machine) -> Plan:
    """Its own layout as a plan, whether or not it would fit."""
    costs = Costs(machine)
    plan = replace(
        asked(run, machine),
        mesh=Mesh(run.dp, run.tp, run.pp),
        zero=run.zero,
        micro_steps=run.sequences // (run.dp * run.micro_batch),
        capacity=run.micro_batch * run.length,
        schedule=run.schedule,
        pins={"recompute": run.recompute, **PINS.get(run.framework, {})},
    )
    for make in PASSES:
        plan = make(costs)(plan)
    return plan


def priced_as_run(run: Run, plan: Plan, machine: Machine) -> Priced:
    """A plan of this run with the price of the framework that ran it."""
    return framed(Costs(machine).priced(plan), run.framework)
