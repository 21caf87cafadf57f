"""Fourfold's programs under the same clock: plans made beforehand, on any machine, and run from their files.

A file holds one plan, the name it goes by, and what the planner predicts for it. To plan takes the solver and the model
on the meta device; to run a plan takes neither.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from measuring import Clock, Row, Shape, batches, finish, forget, measured
from torch import Tensor

from fourfold.backends.program import Options, Program
from fourfold.compiler.models.llama import Llama
from fourfold.compiler.schedules import Scheduled
from fourfold.ir.plan import Plan


@dataclass(frozen=True, slots=True)
class Variant:
    """A named plan and its prediction: seconds of a step, bytes of the fullest rank (low, high)."""

    name: str
    plan: Plan
    seconds: float | None = None
    memory: tuple[float, float] | None = None

    def __str__(self) -> str:
        return self.name

    @property
    def sequences(self) -> int:
        """Sequences of one step on all ranks."""
        return self.plan.workload.sequences

    @classmethod
    def read(cls, path: Path) -> Variant:
        """From the files `save` wrote: NAME.plan.json, and NAME.json beside it."""
        told = json.loads(path.with_name(path.name.replace(".plan.json", ".json")).read_text())
        memory = told["memory"]
        return cls(told["name"], Plan.load(path), told["seconds"], (memory[0], memory[1]) if memory else None)

    def save(self, folder: Path, order: int) -> None:
        """Writes the plan, and its name and prediction beside it; `order` is when its turn comes."""
        stem = f"{order:02d}"
        self.plan.save(folder / f"{stem}.plan.json")
        told = {"name": self.name, "seconds": self.seconds, "memory": self.memory}
        (folder / f"{stem}.json").write_text(json.dumps(told) + "\n")


class Ours:
    """One program and its optimizer, with marks around the parts of its step."""

    def __init__(self, variant: Variant, shape: Shape) -> None:
        with torch.device("meta"):
            model = Llama(shape.config)
        options = Options(compile=shape.real, device=shape.device)
        self.program = Program(model, variant.plan, variant.plan.graph, options, Scheduled.of(variant.plan))
        self.program.init(0)
        self.optimizer = torch.optim.AdamW(self.program.parameters(), lr=3e-4, fused=shape.real)
        self.clock = Clock(shape.device)
        self._marked()

    def _marked(self) -> None:
        """Marks the end of each forward from outside: the engine knows no clock. (Of several, the last spans count.)"""
        inner = self.program.engine.run

        def run(*arguments: Any, **settings: Any) -> tuple[Tensor, ...]:
            found = inner(*arguments, **settings)
            self.clock.mark("backward")
            return found

        self.program.engine.run = run  # type: ignore[method-assign]

    def step(self, batch: Sequence[Tensor], clock: Clock) -> float:
        """One step over the global batch."""
        self.clock = clock
        loss = self.program.step(batch)
        clock.mark("optimizer")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss

    def close(self) -> None:
        """Gives back the communicators of the program's mesh: each holds memory that the allocator does not see."""
        finish(self.program.ranks.device)
        for group in self.program.ranks.mesh.get_all_groups():
            if group is not dist.group.WORLD:
                dist.destroy_process_group(group)


def run(ours: Ours, variant: Variant, shape: Shape) -> Row:
    """The variant's row. Raises what torch and the program raise."""
    tokens = variant.sequences * shape.length
    row = Row(
        "fourfold",
        variant.name,
        tokens,
        dist.get_world_size(),
        predicted_seconds=variant.seconds,
        predicted_memory=variant.memory,
        settings=settings(variant.plan),
    )
    found = [list(batch[:, :-1].unbind(0)) for batch in batches(shape, variant.sequences)]
    return measured(row, lambda number, clock: ours.step(found[number], clock), shape)


def settings(plan: Plan) -> dict[str, Any]:
    """The decisions that tell plans apart."""
    return {
        "mesh": str(plan.mesh),
        "zero": plan.zero,
        "micro_steps": plan.micro_steps,
        "capacity": plan.capacity,
        "recompute": {mode: plan.recompute.count(mode) for mode in dict.fromkeys(plan.recompute)},
    }


def made(variant: Variant, shape: Shape) -> Ours:
    """The program of a variant on an emptied device."""
    forget(shape.device)
    return Ours(variant, shape)
