"""The front door: plan(model, workload, hardware) -> Answer, compile(model, plan) -> Program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import lcm
from pathlib import Path

import torch
from torch import nn

from fourfold.backends.program import Options, Program
from fourfold.compiler.capture import capture
from fourfold.hardware import load
from fourfold.hardware.errors import InfeasibleError, ModelError, UsageError
from fourfold.hardware.topology import Machine
from fourfold.ir.answer import Answer
from fourfold.ir.graph import Graph
from fourfold.ir.plan import Optimizer, Plan, Precision
from fourfold.ir.workload import Workload
from fourfold.passes.repairs import infeasible
from fourfold.passes.search import Search, check_tensor_pin

BUCKET = 128
"""Token counts are padded to multiples of this, and of tp."""


def plan(
    model: nn.Module,
    workload: Workload,
    *,
    hardware: str | Machine,
    optimizer: str | float | Optimizer = "adamw",
    precision: Precision = Precision.bf16,
    pins: Mapping[str, str | int] | None = None,
    top: int = 3,
) -> Answer:
    """The fastest plan that fits, its price, the next-best plans, what was refused and what each pin costs.

    Needs no GPU and no process group. Raises ModelError, ProfileError, UsageError for pins, InfeasibleError.
    """
    machine = load(hardware) if isinstance(hardware, str) else hardware
    graph = capture(model, getattr(torch, precision.compute))
    return plan_graph(graph, workload, machine=machine, optimizer=optimizer, precision=precision, pins=pins or {}, top=top)


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
    pins = dict(pins or {})
    kept = optimizer if isinstance(optimizer, Optimizer) else Optimizer.named(optimizer)
    bucket = lcm(BUCKET, int(pins.get("tp", 1))) if machine.device.vendor != "cpu" else lcm(8, int(pins.get("tp", 1)))
    start = Plan(graph, machine.snapshot(), workload, precision=precision, optimizer=kept, pins=pins, bucket=bucket)
    if "tp" in pins:
        check_tensor_pin(graph, int(pins["tp"]))
    search = Search(machine, top)
    answer = search(start)
    if answer is None:
        raise InfeasibleError(infeasible(start, machine, tuple(search.refused)))
    return replace(answer, pins=_pin_costs(start, machine, answer))


def _pin_costs(start: Plan, machine: Machine, answer: Answer) -> dict[str, float]:
    """Seconds each pin adds to a step: the step with all pins less the step without that one."""
    found = {}
    for name in start.pins:
        free = Search(machine, 0)(replace(start, pins={k: v for k, v in start.pins.items() if k != name}))
        found[name] = answer.estimate.step - free.estimate.step if free else 0.0
    return found


def compile(
    model: nn.Module,
    plan: Plan | Answer | str | Path | None = None,
    *,
    workload: Workload | None = None,
    hardware: str | Machine | None = None,
    options: Options | None = None,
) -> Program:
    """The training program of this rank for `model` under a plan (or plans first, given workload and hardware).

    Raises ModelError when the plan was made for another model, RunError when the number of processes is not its own.
    """
    if plan is None:
        if workload is None or hardware is None:
            raise UsageError("compile() needs a plan, or a workload and a hardware name to make one")
        plan = globals()["plan"](model, workload, hardware=hardware)
    chosen = plan.plan if isinstance(plan, Answer) else plan if isinstance(plan, Plan) else Plan.load(plan)
    graph = capture(model, getattr(torch, chosen.precision.compute))
    if graph.fingerprint != chosen.graph.fingerprint:
        raise ModelError(_another_model(chosen.graph, graph))
    return Program(model, chosen, graph, options or Options())


def _another_model(planned: Graph, given: Graph) -> str:
    """The first difference between two graphs, for the user."""
    a, b = dict(planned.parameters()), dict(given.parameters())
    for name in (*a, *b):
        if a.get(name) != b.get(name):
            shapes = (f"{list(x[name].shape)}" if name in x else "absent" for x in (a, b))
            return "the plan is for another model: {} is {} in the plan and {} in this model; plan again".format(name, *shapes)
    return f"the plan is for another {planned.name}: the parameters agree and the computation differs; plan again"
