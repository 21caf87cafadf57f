"""Plan the variants that train_8b.py and loss_parity.py run, and write them with their predictions: needs no GPU.

    PYTHONPATH=src python benchmarks/plan_8b.py --gpus 2 --out plans/h200-2
    PYTHONPATH=src python benchmarks/plan_8b.py --gpus 2 --parity --out plans/parity-2
    PYTHONPATH=src python benchmarks/plan_8b.py --tiny --out plans/tiny
    PYTHONPATH=src python benchmarks/plan_8b.py --tiny --parity --out plans/parity-tiny

The machine that trains needs neither the solver nor the time to plan. Files are numbered in the order they are run:
first the planner's own choice, then dp with ZeRO-3, tp and dp x tp, each pinned, at one, two and four sequences a GPU.
A pinned variant that the planner finds too large is left out, and named.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from measuring import LLAMA_8B, PARITY, TINY
from ours import Variant, settings

from fourfold.compiler.api import plan_graph
from fourfold.compiler.capture import capture
from fourfold.compiler.models.llama import Llama
from fourfold.hardware import load
from fourfold.hardware.errors import InfeasibleError
from fourfold.ir.answer import Estimate
from fourfold.ir.plan import Precision
from fourfold.ir.workload import Workload

Pins = Mapping[str, str | int]


@dataclass(frozen=True, slots=True)
class Wish:
    """A variant to plan: sequences of one step on all ranks, and what is pinned."""

    name: str
    sequences: int
    pins: Pins


def wishes(gpus: int, *, tiny: bool) -> Iterator[Wish]:
    """The variants in the order they matter."""
    dp: Pins = {"dp": gpus, "tp": 1}
    tp: Pins = {"dp": 1, "tp": gpus}
    yield Wish(f"planner's choice, {2 * gpus} seq", 2 * gpus, {})
    yield Wish(f"dp{gpus} ZeRO-3, 1 seq/GPU, keep", gpus, {**dp, "zero": 3, "recompute": "none"})
    yield Wish(f"planner's choice, {gpus} seq", gpus, {})
    yield Wish(f"tp{gpus}, {gpus} seq", gpus, {**tp, "micro_steps": 1})
    if gpus == 4:
        yield Wish("dp2 x tp2 ZeRO-3, 4 seq", 4, {"dp": 2, "tp": 2, "zero": 3, "micro_steps": 1})
    yield Wish(f"dp{gpus} ZeRO-3, 2 seq/GPU", 2 * gpus, {**dp, "zero": 3, "micro_steps": 1})
    yield Wish(f"dp{gpus} ZeRO-3, 1 seq/GPU, regions", gpus, {**dp, "zero": 3, "recompute": "regions"})
    if tiny:
        return
    yield Wish(f"planner's choice, {4 * gpus} seq", 4 * gpus, {})
    yield Wish(f"dp{gpus} ZeRO-3, 1 seq/GPU, full", gpus, {**dp, "zero": 3, "recompute": "full"})
    yield Wish(f"tp{gpus}, {2 * gpus} seq", 2 * gpus, {**tp, "micro_steps": 1})
    most: Pins = {**dp, "zero": 3, "recompute": "regions", "micro_steps": 1}
    yield Wish(f"dp{gpus} ZeRO-3, 4 seq/GPU, regions", 4 * gpus, most)


def parity_wishes(gpus: int, length: int) -> Iterator[Wish]:
    """The layouts whose losses are compared: eight sequences a step, two at once."""
    pair: Pins = {"capacity": 2 * length}
    yield Wish("planner's choice", 8, pair)
    for zero in (3, 2, 1, 0):
        yield Wish(f"dp{gpus} ZeRO-{zero}", 8, {**pair, "dp": gpus, "tp": 1, "zero": zero})
    yield Wish(f"tp{gpus}", 8, {**pair, "dp": 1, "tp": gpus})
    yield Wish(f"dp{gpus} ZeRO-3, regions", 8, {**pair, "dp": gpus, "tp": 1, "zero": 3, "recompute": "regions"})
    if gpus == 4:
        yield Wish("dp2 x tp2 ZeRO-3", 8, {**pair, "dp": 2, "tp": 2, "zero": 3})


def main() -> int:
    """Plan all and say what was planned; 1 if nothing could be."""
    arguments = parsed()
    gpus = 2 if arguments.tiny else arguments.gpus
    size = PARITY if arguments.parity else LLAMA_8B
    config, length = (TINY, 64) if arguments.tiny else (size, 1024 if arguments.parity else 8192)
    wished = parity_wishes(gpus, length) if arguments.parity else wishes(gpus, tiny=arguments.tiny)
    machine = load("cpu-gloo-2" if arguments.tiny else f"h200-{gpus}")
    precision = Precision.fp32 if arguments.tiny else Precision.bf16
    with torch.device("meta"):
        model = Llama(config)
    graph = capture(model, getattr(torch, precision.compute))
    arguments.out.mkdir(parents=True, exist_ok=True)
    for old in arguments.out.glob("[0-9][0-9].*json"):
        old.unlink()
    order = 0
    for wish in wished:
        workload = Workload.fixed(length=length, sequences=wish.sequences)
        try:
            answer = plan_graph(graph, workload, machine=machine, precision=precision, pins=wish.pins, top=0)
        except InfeasibleError as error:
            print(f"-- {wish.name}: {str(error).splitlines()[0]}")
            continue
        Variant(wish.name, answer.plan, answer.estimate.step, answer.estimate.peak).save(arguments.out, order)
        print(f"{order:02d} {wish.name}: {_told(answer.estimate)}, {settings(answer.plan)}")
        order += 1
    return 0 if order else 1


def _told(estimate: Estimate) -> str:
    low, high = (b / 1e9 for b in estimate.peak)
    rate = estimate.tokens_per_second / estimate.ranks
    return f"{estimate.step:.4f} s, {rate:.0f} tok/s/GPU, {low:.0f}-{high:.0f} GB"


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, choices=(2, 4), default=2)
    parser.add_argument("--parity", action="store_true", help="plans for loss_parity.py")
    parser.add_argument("--tiny", action="store_true", help="a toy for two CPU processes")
    parser.add_argument("--out", type=Path, required=True, help="a folder for the plans")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
