"""Every step measured on GPUs priced again with today's cost model: predicted beside measured, no plan searched.

    PYTHONPATH=src python benchmarks/reprice.py

Reads the rows under benchmarks/results. What a row does not say of its plan is here: the lengths, and where stages
began. Of a pipeline the bubble of each rank is shown too. A change of prices is judged by this table.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import context_cases as cases
import torch
from measuring import LLAMA_8B

from fourfold.compiler.capture import capture
from fourfold.compiler.models.llama import Llama, LlamaConfig
from fourfold.hardware import load
from fourfold.hardware.topology import Machine
from fourfold.ir.graph import Graph
from fourfold.ir.mesh import AXES, Mesh
from fourfold.ir.plan import RECOMPUTE, Plan, Precision
from fourfold.ir.workload import Workload
from fourfold.passes.cuts import CutTensors
from fourfold.passes.price.costs import Costs
from fourfold.passes.price.pipelined import timed_schedule
from fourfold.passes.price.price import Priced

RESULTS = Path(__file__).parent / "results"
FOLDERS = ("llama-8b-h200x2", "pipeline-h200x2", "zero-bubble-h200x2", "long-context-h200x2")
LENGTH = 8192
"""Tokens of a sequence, but in long contexts, where one sequence is the whole step."""

BOUNDS: Mapping[str, tuple[int, ...]] = {"1f1b": (18,), "zero_bubble": (18,), "interleaved-2": (9, 18, 27)}
"""Where the stages of the measured pipelines began."""

SCHEDULES: Mapping[str, str] = {"interleaved": "interleaved-2", "zero-bubble": "zero_bubble"}
"""By a word of the row's name, where it is not 1F1B."""


@dataclass(frozen=True, slots=True)
class Repriced:
    """A measured row, and its plan with today's price."""

    folder: str
    name: str
    seconds: float
    priced: Priced

    @property
    def predicted(self) -> float:
        """Seconds of a step."""
        return self.priced.step.seconds

    @property
    def error(self) -> float:
        """By how much the prediction is above what was measured, as a share of it."""
        return self.predicted / self.seconds - 1.0

    @property
    def bubbles(self) -> list[float]:
        """The share of its step in which each rank computes nothing, by the timeline; none without stages."""
        found = self.priced
        if found.plan.mesh.pp == 1:
            return []
        line = timed_schedule(found.plan, found.stages, send=found.send)
        return [idle / line.makespan for idle in line.bubbles]


def rows(folder: str) -> Iterator[dict[str, Any]]:
    """The measured steps of our own programs."""
    for text in (RESULTS / folder / "rows.jsonl").read_text().splitlines():
        row = json.loads(text)
        if row["program"] == "fourfold" and row["seconds"]:
            yield row


def repriced() -> Iterator[Repriced]:
    """Every committed row with today's price."""
    machine = load("h200-2")
    costs = Costs(machine)
    for folder in FOLDERS:
        for row in rows(folder):
            plan = plan_of(row, machine) if "context" not in folder else context_plan(row)
            plan = CutTensors(costs)(plan) if plan.mesh.tp > 1 else plan
            yield Repriced(folder, row["name"], row["seconds"], costs.priced(plan))


def plan_of(row: Mapping[str, Any], machine: Machine) -> Plan:
    """The plan of a row at 8192 tokens a sequence; its layouts are for a tensor axis of one."""
    told, graph = row["settings"], graph_of(LLAMA_8B)
    mesh = mesh_of(told["mesh"])
    schedule = next((name for word, name in SCHEDULES.items() if word in row["name"]), "1f1b")
    shell = cases.plan_of(graph, 1, cases.CASES["32k"], cases.HOW["ring"])
    return replace(
        shell,
        machine=machine.snapshot(),
        workload=Workload.fixed(length=LENGTH, sequences=row["tokens"] // LENGTH),
        mesh=mesh,
        zero=told["zero"],
        precision=Precision.bf16,
        micro_steps=told["micro_steps"],
        capacity=told["capacity"],
        recompute=modes(graph, told["recompute"]),
        schedule=schedule,
        bounds=BOUNDS[schedule] if mesh.pp > 1 else (),
    )


def context_plan(row: Mapping[str, Any]) -> Plan:
    """The plan of a long sequence, made by hand as it was when it was measured."""
    name, _, how = row["name"].partition(" ")
    case = cases.CASES[name]
    how = how.replace(", zigzag", "")
    return cases.plan_of(graph_of(case.config), row["ranks"], case, cases.HOW[how])


@cache
def graph_of(config: LlamaConfig) -> Graph:
    """The model, captured."""
    with torch.device("meta"):
        return capture(Llama(config), torch.bfloat16)


def mesh_of(text: str) -> Mesh:
    """The mesh that prints as `text`."""
    degrees = dict.fromkeys(AXES, 1)
    for word in text.split(" x "):
        degrees[word[:2]] = int(word[2:])
    return Mesh(**degrees)


def modes(graph: Graph, counts: Mapping[str, int]) -> tuple[str, ...]:
    """One mode a call: what recomputes are the calls with attention, all alike."""
    again = next((mode for mode in RECOMPUTE[1:] if counts.get(mode)), RECOMPUTE[0])
    mixing = [any(n.op == "attention" for n in graph.blocks[call.block].nodes) for call in graph.calls]
    return tuple(again if mixes else RECOMPUTE[0] for mixes in mixing)


def percents(shares: list[float]) -> str:
    """Shares in percent."""
    return " ".join(f"{100 * share:.1f}" for share in shares)


def main() -> int:
    """Prints the table, and the mean and worst error of each folder."""
    bubbles = {at.parent.name: json.loads(at.read_text()) for at in RESULTS.glob("*/bubbles.json")}
    found = list(repriced())
    print(f"{'results':20} {'plan':34} {'measured':>9} {'predicted':>9} {'error':>7}  bubble %, planned and measured")
    for one in found:
        beside = ""
        if one.bubbles:
            beside = f"  {percents(one.bubbles)} / {percents(bubbles[one.folder][one.name]['measured'])}"
        figures = f"{one.seconds:9.4f} {one.predicted:9.4f} {100 * one.error:+6.1f}%"
        print(f"{one.folder:20} {one.name:34} {figures}{beside}")
    for folder in FOLDERS:
        errors = [abs(one.error) for one in found if one.folder == folder]
        print(f"{folder}: {100 * sum(errors) / len(errors):.1f} % mean, {100 * max(errors):.1f} % worst")
    return 0


if __name__ == "__main__":
    sys.exit(main())
