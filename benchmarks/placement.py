"""Policies side by side on every cell: lengths x machine x model x ZeRO. Needs no GPU.

    PYTHONPATH=src python benchmarks/placement.py --out benchmarks/results/placement

A cell is one static plan (pinned: pure data parallelism over the pool, tensor degree 8 for the large model, four
micro-steps of full ranks or so) and one batch. Prints the step by policy, how far `auto` is above the bound, and in how
many cells it is strictly faster than every other policy, and within 5 % of the bound. Solving is in seconds of the
process; so is what each line ends with, all that its cell took.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch

from fourfold.compiler.api import plan_graph
from fourfold.compiler.capture import capture
from fourfold.compiler.cli.asking import lengths_file
from fourfold.compiler.models import from_reference
from fourfold.hardware import load
from fourfold.hardware.errors import InfeasibleError
from fourfold.ir.graph import Graph
from fourfold.ir.workload import Workload
from fourfold.passes.batch import POLICIES
from fourfold.passes.batch.showing.compare import compared
from fourfold.passes.batch.timing.planned import terms_of
from fourfold.passes.batch.timing.terms import Terms

MODELS: Mapping[str, int] = {"llama-8b": 1, "llama-70b": 8}
"""Tensor degree by model."""
MACHINES = ("dgx-h200:1", "dgx-h200:8", "dgx-h100:8", "dgx-a100-80gb:8")
ROOM, LARGE = 16_384, 67_584
"""Tokens of a rank's micro-step; the larger where a pool of eight must hold a sequence of half a million."""
CLOSE = 0.05


@dataclass(frozen=True, slots=True)
class Cell:
    """What was placed where, the step by policy, and what auto reached."""

    model: str
    machine: str
    zero: int
    capacity: int
    lengths: str
    steps: Mapping[str, float]
    gap: float
    spent: float

    @property
    def best(self) -> bool:
        """Whether auto is strictly faster than every other policy."""
        return all(self.steps["auto"] < step for name, step in self.steps.items() if name != "auto")

    def __str__(self) -> str:
        steps = "  ".join(f"{name} {step:.3f}" for name, step in self.steps.items())
        where = f"{self.model} {self.machine} ZeRO-{self.zero} {self.capacity} {self.lengths}"
        return f"{where:58s} {steps}  gap {self.gap:.1%}  {'best' if self.best else 'equal'}  {self.spent:.1f} s"


def shipped(name: str, tokens: int) -> list[int]:
    """Lengths of a shipped table."""
    found = Workload.sample(lengths_file(name), tokens_per_step=tokens)
    return [length for length, count in found.lengths for _ in range(count)]


def crawled(tokens: int) -> list[int]:
    """A stand-in for CommonCrawl: a lognormal body of mean 3,000 below 8K, 6 % in a Pareto tail of index 1.15 to 384K.

    Calibrated on FlexSP's published times (arXiv 2412.01523), whose list is not public.
    """
    random, low, high, index = Random(0), 8_192.0, 393_216.0, 1.15

    def one() -> int:
        if random.random() < 0.06:
            share = random.random()
            return int((low**-index - share * (low**-index - high**-index)) ** (-1 / index))
        return max(16, min(8_192, int(random.lognormvariate(math.log(3_000) - 0.5, 1.0))))

    return _until(tokens, one)


def heavy(tokens: int) -> list[int]:
    """Wikipedia with 1 % of documents log-uniform in 64K to 512K."""
    random, words = Random(0), lengths_file("wikipedia").read_text().split("\n")
    known = [int(word) for word in words if word.isdigit()]

    def one() -> int:
        if random.random() < 0.01:
            return int(math.exp(random.uniform(math.log(65_536), math.log(524_288))))
        return random.choice(known)

    return _until(tokens, one)


def _until(tokens: int, one: Callable[[], int]) -> list[int]:
    found: list[int] = []
    while sum(found) < tokens:
        found.append(one())
    return found


def batch(name: str, tokens: int) -> list[int]:
    """Lengths by name."""
    return {"crawled": crawled, "heavy": heavy}.get(name, lambda many: shipped(name, many))(tokens)


LENGTHS = ("wikipedia", "prolong", "pretrain", "crawled", "heavy")


def static(graph: Graph, machine: str, *, tp: int, zero: int, capacity: int) -> Terms:
    """The terms of the plan that is pinned. Raises InfeasibleError where it does not fit."""
    pool = load(machine).ranks // tp
    sequences = max(1, tokens_of(machine) // capacity // pool) * pool
    pins: dict[str, str | int] = {"dp": pool, "tp": tp, "pp": 1, "sp": 1, "zero": zero, "capacity": capacity}
    workload = Workload.fixed(length=capacity, sequences=sequences)
    return terms_of(plan_graph(graph, workload, machine=load(machine), pins=pins, top=0).plan)


def tokens_of(machine: str) -> int:
    """Tokens of a step."""
    return 2**22 if load(machine).nodes > 1 else 2**20


def cells(names: Sequence[str], models: Sequence[str]) -> Iterator[Cell]:
    """Every cell whose static plan fits its machine and whose pool holds its longest sequence."""
    for model in models:
        with torch.device("meta"):
            graph = capture(from_reference(model, {}), torch.bfloat16)
        for machine in MACHINES:
            for zero in (1, 3):
                yield from _cells(graph, model, machine, zero, names)


def _cells(graph: Graph, model: str, machine: str, zero: int, names: Sequence[str]) -> Iterator[Cell]:
    known: dict[int, Terms] = {}
    pool = load(machine).ranks // MODELS[model]
    if pool < 8:
        return
    for name in LENGTHS:
        started = time.process_time()
        lengths = batch(name, tokens_of(machine))
        capacity = ROOM if max(lengths) < 0.99 * pool * ROOM else LARGE
        try:
            known[capacity] = known.get(capacity) or static(
                graph, machine, tp=MODELS[model], zero=zero, capacity=capacity
            )
        except InfeasibleError:
            print(f"-- {model} {machine} ZeRO-{zero} {capacity} {name}: its plan does not fit", flush=True)
            continue
        found = compared(lengths, known[capacity], names, watch=lambda name: None)
        steps = {one.policy: one.timing.seconds for one in found if one.timing is not None}
        gap = next(one.timing.gap for one in found if one.policy == "auto" and one.timing is not None)
        spent = time.process_time() - started
        yield Cell(model, machine, zero, capacity, name, steps, gap, spent)


def main() -> int:
    """Place all cells, print them and the counts; 1 if auto is slower than another policy anywhere."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=tuple(MODELS), action="append")
    parser.add_argument("--out", type=Path, help="a folder for table.txt")
    arguments = parser.parse_args()
    started, found = time.process_time(), []
    for cell in cells(tuple(POLICIES), arguments.model or tuple(MODELS)):
        found.append(cell)
        print(cell, flush=True)
    slower = [cell for cell in found if cell.steps["auto"] > min(cell.steps.values())]
    close = sum(cell.gap <= CLOSE for cell in found)
    best, spent = sum(cell.best for cell in found), time.process_time() - started
    said = (
        f"{len(found)} cells: auto strictly the fastest in {best}, slower than another in {len(slower)}, "
        f"within {CLOSE:.0%} of the bound in {close}; {spent:.0f} s of a processor"
    )
    print(said)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "table.txt").write_text("\n".join([*map(str, found), said]) + "\n")
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
