"""`fourfold verify`: run a plan on gloo processes of this machine, beside the plain module."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fourfold.compiler.cli import options, values
from fourfold.compiler.cli.asking import model_of
from fourfold.compiler.cli.machines import machine_of
from fourfold.compiler.cli.planning import saved
from fourfold.compiler.cli.render import dump
from fourfold.compiler.cli.running import planned
from fourfold.hardware.errors import RunError, UsageError

if TYPE_CHECKING:
    from torch import nn

    from fourfold.ir.plan import Plan

DTYPES = {"fp32": "float32", "fp64": "float64"}
AXES = ("pp", "dp", "sp", "tp")
RANKS, LENGTH, SEQUENCES = 4, 64, 16


def verify(
    model: options.Model,
    hardware: options.Hardware = None,
    plan: Annotated[str | None, typer.Option("--plan", metavar="FILE", help="Verify this plan.")] = None,
    processes: Annotated[int | None, typer.Option("--nproc", min=1, help="Processes; what the pins say, or 4.")] = None,
    pin: options.Pins = None,
    override: options.Overrides = None,
    numbers: Annotated[
        str, typer.Option("--precision", metavar="P", help="fp32 (to 1e-4) or fp64 (to 1e-9).")
    ] = "fp32",
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps of AdamW.")] = 3,
    policy: Annotated[
        str | None, typer.Option("--policy", metavar="NAME", help="Place the batch by this policy, as for `batch`.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Prove a plan: loss, gradients, updates on processes here against the plain module. Exit code 13 if not."""
    if numbers not in DTYPES:
        raise UsageError(f"--precision {numbers!r}: verify runs in {' or '.join(DTYPES)}")
    pins, changed = values.pins(pin or ()), values.pairs(override or (), "--set")
    ranks = processes or ranks_of(pins)
    module = model_of(model, changed, small=not (plan or hardware))
    chosen = (
        _given(plan, module, same=not changed)
        if plan
        else _planned(module, hardware or f"cpu-gloo@{ranks}", pins, numbers)
    )
    from fourfold.compiler.verify import verify as prove

    report = prove(module, chosen, dtype=DTYPES[numbers], steps=steps, ranks=processes or 8, policy=policy)
    if as_json:
        dump(report.plain())
    else:
        print(report)
    if not report.passed:
        raise typer.Exit(RunError.exit_code)


def ranks_of(pins: Mapping[str, str | int]) -> int:
    """The ranks that the pinned degrees ask for; RANKS where no degree is pinned. Raises UsageError."""
    from fourfold.passes.search.pins import DEGREES, number

    degrees = [number(pins, axis) for axis in DEGREES]
    return math.prod(degree or 1 for degree in degrees) if any(degrees) else RANKS


def _given(file: str, module: nn.Module, *, same: bool) -> Plan:
    """The plan in a file. Raises ModelError when it is for another model (not asked of one changed by --set)."""
    from fourfold.compiler import api

    chosen = saved(file)
    if same:
        api.graph_for(module, chosen)
    return chosen


def _planned(module: nn.Module, hardware: str, pins: Any, numbers: str) -> Plan:
    from fourfold.ir.workload import Workload

    workload = Workload.fixed(length=LENGTH, sequences=SEQUENCES)
    return planned(module, workload, machine_of(hardware, None), pins=pins, word=numbers).plan
