"""The front door: plan(model, workload, hardware) -> Answer, compile(model, plan) -> Program."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch import nn

from fourfold.backends.communication.ranks import from_first
from fourfold.backends.program import Options, Program
from fourfold.compiler.capture import capture
from fourfold.compiler.online import Online, Placer
from fourfold.compiler.pipeline import planned
from fourfold.compiler.schedules import Scheduled
from fourfold.hardware import load
from fourfold.hardware.errors import ModelError, UsageError
from fourfold.hardware.topology import Machine
from fourfold.ir.answer import Answer
from fourfold.ir.graph import Graph
from fourfold.ir.plan import Optimizer, Plan, Precision
from fourfold.ir.serial import to_json
from fourfold.ir.verify import sound, verified
from fourfold.ir.workload import Workload

BUCKET, SMALL_BUCKET = 128, 8
"""Token counts are padded to multiples of this (the small one on a CPU) and of tp."""


def plan(
    model: nn.Module,
    workload: Workload,
    *,
    hardware: str | Path | Machine,
    optimizer: str | float | Optimizer = "adamw",
    precision: Precision = Precision.bf16,
    pins: Mapping[str, str | int] | None = None,
    top: int = 3,
) -> Answer:
    """The fastest plan that fits, its price, the next-best plans, what was refused and what each pin costs.

    Needs no GPU and no process group. Raises ModelError, ProfileError, UsageError for pins, InfeasibleError.
    """
    machine = hardware if isinstance(hardware, Machine) else load(str(hardware))
    graph = capture(model, getattr(torch, precision.compute))
    return plan_graph(
        graph, workload, machine=machine, optimizer=optimizer, precision=precision, pins=pins or {}, top=top
    )


def plan_graph(
    graph: Graph,
    workload: Workload,
    *,
    machine: Machine,
    optimizer: str | float | Optimizer = "adamw",
    precision: Precision = Precision.bf16,
    pins: Mapping[str, str | int] | None = None,
    top: int = 3,
) -> Answer:
    """`plan` for a graph that is already captured."""
    kept = optimizer if isinstance(optimizer, Optimizer) else Optimizer.named(optimizer)
    bucket = SMALL_BUCKET if machine.device.vendor == "cpu" else BUCKET
    start = Plan(
        graph,
        machine.snapshot(),
        workload,
        precision=precision,
        optimizer=kept,
        pins=dict(pins or {}),
        bucket=bucket,
    )
    return planned(start, machine, top=top)


plan_first = plan
"""`plan`, where a parameter of that name hides it."""


def compile(
    model: nn.Module,
    plan: Plan | Answer | str | Path | None = None,
    *,
    workload: Workload | None = None,
    hardware: str | Path | Machine | None = None,
    optimizer: str | float | Optimizer = "adamw",
    precision: Precision = Precision.bf16,
    pins: Mapping[str, str | int] | None = None,
    options: Options | None = None,
    batches: str | Online | None = None,
) -> Program:
    """The training program of this rank for `model` under a plan; without one it plans first, on rank 0 for all.

    `workload` to `pins` are those of `plan`, for when there is none. batches: the policy that places each batch on the
    pool ("auto", "zeppelin", ..), or how placing is done; None deals sequences to the plan's fixed groups. Raises
    ModelError when the plan was made for another model, RunError when the number of processes is not its own,
    UsageError for a plan that breaks a rule, and without a plan what `plan` raises.
    """
    options = options or Options()
    if plan is None:
        if workload is None or hardware is None:
            raise UsageError("compile() needs a plan, or a workload and a hardware name to make one")
        asked = partial(
            plan_first, model, workload, hardware=hardware, optimizer=optimizer, precision=precision, pins=pins, top=0
        )
        plan = Plan.read(from_first(lambda: to_json(asked().plan), device=options.device), "the plan of rank 0")
    chosen = verified(plan_of(plan))
    online = Online(policy=batches) if isinstance(batches, str) else batches
    placement = None if online is None else Placer.of(chosen, online)
    return Program(model, chosen, graph_for(model, chosen), options, Scheduled.of(chosen), placement)


def plan_of(given: Plan | Answer | str | Path) -> Plan:
    """The plan of an answer, a plan or a file. Raises UsageError for a file whose plan does not hold together."""
    if isinstance(given, (str, Path)):
        return sound(Plan.load(given), str(given))
    return given.plan if isinstance(given, Answer) else given


def graph_for(model: nn.Module, plan: Plan) -> Graph:
    """The model's graph, in the plan's precision. Raises ModelError when the plan was made for another model."""
    graph = capture(model, getattr(torch, plan.precision.compute))
    if graph.fingerprint != plan.graph.fingerprint:
        raise ModelError(_another_model(plan.graph, graph))
    return graph


def _another_model(planned: Graph, given: Graph) -> str:
    """The first difference between two graphs, for the user."""
    a, b = dict(planned.parameters()), dict(given.parameters())
    for name in (*a, *b):
        if a.get(name) != b.get(name):
            shapes = (f"{list(x[name].shape)}" if name in x else "absent" for x in (a, b))
            return "the plan is for another model: {} is {} in the plan and {} in this model; plan again".format(
                name, *shapes
            )
    return f"the plan is for another {planned.name}: the parameters agree and the computation differs; plan again"
