"""Plan the long sequences of long_context.py with the solver, on any machine: the planner's choice, and tp beside sp.

    PYTHONPATH=src python benchmarks/plan_context.py --gpus 4 --out plans/context-4

The files carry the predictions, and long_context.py runs them with --plans.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import context_cases as cases
import torch
from ours import Variant, settings

from fourfold.compiler.api import plan_graph
from fourfold.compiler.capture import capture
from fourfold.compiler.models.llama import Llama
from fourfold.hardware import load
from fourfold.hardware.errors import InfeasibleError
from fourfold.ir.workload import Workload

Pins = Mapping[str, str | int]


def wishes(gpus: int) -> dict[str, Pins]:
    """What is pinned, by name."""
    alone: dict[str, Pins] = {"planner's choice": {}}
    return alone | ({f"tp2 x sp{gpus // 2}": {"tp": 2, "sp": gpus // 2}} if gpus > 2 else {})


def main() -> int:
    """Plan all and say what was planned; 1 if nothing could be."""
    arguments = parsed()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for old in arguments.out.glob("[0-9][0-9].*json"):
        old.unlink()
    machine, order = load(f"h200-{arguments.gpus}"), 0
    for case in cases.CASES.values():
        with torch.device("meta"):
            model = Llama(case.config)
        graph = capture(model, torch.bfloat16)
        workload = Workload.fixed(length=case.length, sequences=1)
        for name, pins in wishes(arguments.gpus).items():
            try:
                answer = plan_graph(graph, workload, machine=machine, pins=pins, top=0)
            except InfeasibleError as error:
                print(f"-- {case.name} {name}: {str(error).splitlines()[0]}")
                continue
            found = answer.estimate
            Variant(f"{case.name} {name}", answer.plan, found.step, found.peak).save(arguments.out, order)
            print(f"{order:02d} {case.name} {name}: {found.step:.4f} s, {answer.plan.sharing}, {settings(answer.plan)}")
            order += 1
    return 0 if order else 1


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, choices=(2, 4), default=2)
    parser.add_argument("--out", type=Path, required=True, help="a folder for the plans")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
