"""Pipelines of llama-8b at 8K tokens: the step and its bubble as planned, and as measured in a trace of every rank.

    PYTHONPATH=src python benchmarks/pipeline.py --plan plans/pp-2 --gpus 2
    PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True PYTHONPATH=src \\
        torchrun --nproc_per_node 2 benchmarks/pipeline.py --plans plans/pp-2 --out out
    PYTHONPATH=src python benchmarks/pipeline.py --plan plans/pp-tiny --gpus 2 --tiny

The bubble of a rank is the share of its step in which it computes nothing: as the timeline says, and as the kernels of
a traced step show it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from functools import partial
from pathlib import Path

import ours
import torch
import torch.distributed as dist
from measuring import LLAMA_8B, TINY, Clock, Row, Shape, batches, forget, table
from tracing import traced
from train_8b import _joined, _name
from turns import Turns

from fourfold.compiler.capture import capture
from fourfold.compiler.models.llama import Llama
from fourfold.hardware import load
from fourfold.hardware.topology import Machine
from fourfold.ir.plan import Plan, Precision
from fourfold.ir.workload import Workload
from fourfold.passes.price.pipelined import timed_schedule
from fourfold.passes.price.price import priced


def wishes(gpus: int) -> list[tuple[str, int, dict[str, str | int]]]:
    """Name, sequences of a step, pins: stages alone, interleaved ones, and beside tensor ranks where there are more."""
    one: dict[str, str | int] = {"pp": gpus, "tp": 1, "dp": 1, "sp": 1}
    found = [(f"pp{gpus}, {m} micro-steps", m, {**one, "micro_steps": m, "schedule": "1f1b"}) for m in (8, 16, 4)]
    found.append((f"pp{gpus} zero-bubble, 8 micro-steps", 8, {**one, "micro_steps": 8, "schedule": "zero_bubble"}))
    found.append((f"pp{gpus} interleaved, 8 micro-steps", 8, {**one, "micro_steps": 8, "schedule": "interleaved-2"}))
    if gpus == 4:
        pair: dict[str, str | int] = {"pp": 2, "tp": 2, "dp": 1, "sp": 1, "micro_steps": 8}
        found.append(("pp2 x tp2, 8 micro-steps", 8, pair))
    return found


def plan_all(folder: Path, gpus: int, *, tiny: bool) -> int:
    """Writes the plans; needs the solver, and no GPU."""
    from fourfold.compiler.api import plan_graph  # the machine that trains has no solver

    config, length = (TINY, 64) if tiny else (LLAMA_8B, 8192)
    machine = load("cpu-gloo-2" if tiny else f"h200-{gpus}")
    precision = Precision.fp32 if tiny else Precision.bf16
    with torch.device("meta"):
        graph = capture(Llama(config), getattr(torch, precision.compute))
    folder.mkdir(parents=True, exist_ok=True)
    for order, (name, sequences, pins) in enumerate(wishes(gpus)):
        if tiny and "interleaved" in name:
            continue
        workload = Workload.fixed(length=length, sequences=sequences)
        answer = plan_graph(graph, workload, machine=machine, precision=precision, pins=pins, top=0)
        ours.Variant(name, answer.plan, answer.estimate.step, answer.estimate.peak).save(folder, order)
        print(f"{name}: {answer.estimate.step:.4f} s, bounds {answer.plan.bounds}, bubble {bubble(answer.plan)}")
    return 0


def bubble(plan: Plan) -> list[float]:
    """The share of the step in which each rank of the line computes nothing, by the timeline that prices the plan."""
    found = priced(plan, Machine.from_snapshot(plan.machine))
    line = timed_schedule(plan, found.stages, send=found.send)
    return [round(seconds / line.makespan, 4) for seconds in line.bubbles]


def turn(variant: ours.Variant, shape: Shape, turns: Turns) -> Row:
    """One plan: measured, then traced on every rank."""
    forget(shape.device)
    program = ours.Ours(variant, shape)
    row = ours.run(program, variant, shape)
    batch = list(batches(shape, variant.sequences)[0][:, :-1].unbind(0))
    found = traced(lambda: program.step(batch, Clock(shape.device)), shape.device)
    share = 1.0 - found["computation"] / found["seconds"] if "seconds" in found else 0.0
    shares: list[float] = [0.0] * dist.get_world_size()
    dist.all_gather_object(shares, round(share, 4))
    program.close()
    turns.write(
        f"bubble-{variant.name.replace(' ', '-').replace(',', '')}.json",
        {"variant": variant.name, "planned": bubble(variant.plan), "measured": shares, "trace": found},
    )
    if turns.rank == 0:
        print(f"{variant.name}: bubble planned {bubble(variant.plan)}, measured {shares}", flush=True)
    return row


def main() -> int:
    """Plans, or runs what was planned."""
    started = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", type=Path, help="write plans into this folder")
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--plans", type=Path, help="run the plans of this folder")
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--budget", type=float, default=400.0)
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    if arguments.plan:
        return plan_all(arguments.plan, arguments.gpus, tiny=arguments.tiny)
    real = torch.cuda.is_available() and not arguments.tiny
    device = _joined(real=real)
    shape = Shape(LLAMA_8B if real else TINY, 8192 if real else 64, device, warmup=2, steps=5)
    turns = Turns(arguments.out, arguments.budget, started)
    for path in sorted(arguments.plans.glob("*.plan.json")):
        variant = ours.Variant.read(path)
        if turns.take("fourfold", variant.name, partial(turn, variant, shape, turns)) is None:
            break
    if turns.rank == 0:
        text = table(turns.rows) + f"\ntorch {torch.__version__}, {turns.size} x {_name(shape)}"
        print(text, flush=True)
        (turns.out / "table.txt").write_text(text + "\n")
        print(json.dumps([row.predicted_seconds for row in turns.rows]))
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
