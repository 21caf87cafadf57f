"""How well plans tell the time of steps on this machine: detect it, plan small Llamas under pins, run them, compare.

    python benchmarks/check_calibration.py [--profile FILE] [--width 128 256] [--steps 8] [--full]

Each row is a plan over gloo processes of this machine: predicted seconds of a step, the measured median, their ratio,
and the processor time of all ranks per core, which no other program on the machine can inflate. Below the rows: the
mean and the worst error, and pairs of rows that were predicted in the wrong order though they differ by more than 15 %.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from statistics import mean, median

import torch

from fourfold.backends.calibrate import detect
from fourfold.backends.communication import processes
from fourfold.compiler import api
from fourfold.compiler.models.llama import Llama, LlamaConfig
from fourfold.hardware import load
from fourfold.ir.answer import Answer
from fourfold.ir.plan import Precision
from fourfold.ir.workload import Workload

RANKS = 4
WARM = 2
"""Steps that are run and not counted."""
APART = 1.15
"""Measured times further apart than this must be predicted in their order."""
LAYERS = {128: 4, 192: 4, 256: 6}
PINS: tuple[Mapping[str, str | int], ...] = (
    {"tp": 1, "zero": 0},
    {"tp": 1, "zero": 1},
    {"tp": 1, "zero": 3},
    {"tp": 1, "zero": 2, "micro_steps": 4},
    {"tp": 2, "zero": 0},
    {"tp": 2, "zero": 3},
    {"tp": 4},
)


@dataclass(frozen=True, slots=True)
class Row:
    """One plan: its name, and seconds of a step as predicted, measured, and by processor time."""

    name: str
    predicted: float
    measured: float
    processor: float

    def __str__(self) -> str:
        times = f"{self.predicted:9.3f} {self.measured:9.3f} {self.ratio:6.2f} {self.processor:9.3f}"
        return f"{self.name:<44}{times}"

    @property
    def ratio(self) -> float:
        """Predicted over measured."""
        return self.predicted / self.measured


def model_of(width: int) -> Llama:
    """A byte-level Llama without data."""
    with torch.device("meta"):
        return Llama(LlamaConfig(width=width, layers=LAYERS.get(width, 4), feed_forward=3 * width))


def steps(answer: Answer, width: int, sequences: tuple[int, int], count: int, rank: int) -> list[tuple[float, float]]:
    """Wall and processor seconds of each step on this rank: forward, backward, clipping and AdamW."""
    program = api.compile(model_of(width), answer)
    program.init(seed=0)
    optimizer = torch.optim.AdamW(program.parameters(), lr=1e-3)
    random = torch.Generator().manual_seed(0)
    found = []
    for _ in range(WARM + count):
        batch = torch.randint(0, 256, sequences, generator=random).tolist()
        wall, own = time.perf_counter(), time.process_time()
        program.step(batch)
        program.clip_grad_norm_(1.0)
        optimizer.step()
        optimizer.zero_grad()
        found.append((time.perf_counter() - wall, time.process_time() - own))
    return found[WARM:]


def rows(profile: str, width: int, sequences: tuple[int, int], count: int) -> Iterator[Row]:
    """One row a pin."""
    machine = load(profile)
    model, cores = model_of(width), os.cpu_count() or 1
    work = Workload.fixed(length=sequences[1], sequences=sequences[0])
    for pins in PINS:
        pinned = {"recompute": "none", "micro_steps": 1, **pins}
        answer = api.plan(model, work, hardware=machine, precision=Precision.fp32, pins=pinned, top=0)
        ranks = processes.run(partial(steps, answer, width, sequences, count), RANKS)
        walls = [wall for wall, _ in ranks[0]]
        used = [sum(own for _, own in step) / cores for step in zip(*ranks, strict=True)]
        plan = answer.plan
        name = f"width {width}: {plan.mesh}, ZeRO {plan.zero}, {plan.micro_steps} micro-steps"
        yield Row(name, answer.estimate.step, median(walls), median(used))


def misordered(found: list[Row]) -> Iterator[str]:
    """Pairs measured further apart than APART and predicted the other way round."""
    for one, other in combinations(sorted(found, key=lambda row: row.measured), 2):
        if other.measured > APART * one.measured and other.predicted <= one.predicted:
            times = other.measured / one.measured
            yield f"{one.name} is {times:.2f} times faster than {other.name}: predicted the other way"


def main() -> None:
    """Measures, plans, runs and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", help="a profile to plan with; measured anew if left out")
    parser.add_argument("--width", type=int, nargs="*", default=[128, 256])
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--full", action="store_true", help="measure finely, not quickly")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        profile = given.profile or measured(Path(folder), full=given.full)
        print(f"{'':<44}{'predicted':>9} {'measured':>9} {'ratio':>6} {'processor':>9}")
        for width in given.width:
            found = []
            for row in rows(profile, width, (given.sequences, given.length), given.steps):
                print(row, flush=True)
                found.append(row)
            errors = [abs(row.ratio - 1) for row in found]
            print(f"error: mean {mean(errors):.0%}, worst {max(errors):.0%}")
            print("\n".join(misordered(found)) or f"every pair more than {APART - 1:.0%} apart is in its order")


def measured(folder: Path, *, full: bool) -> str:
    """The profile of this machine, measured now."""
    started = time.perf_counter()
    first, *_ = detect(ranks=RANKS, quick=not full, say=print).write(folder / "this-machine.toml")
    print(f"measured in {time.perf_counter() - started:.1f} s")
    return str(first)


if __name__ == "__main__":
    main()
