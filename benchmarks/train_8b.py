"""Train llama-8b at 8K tokens: Fourfold's plans beside stock PyTorch, in one run, one clock, one table.

    PYTHONPATH=src python benchmarks/plan_8b.py --gpus 2 --out plans/h200-2
    PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True TORCHINDUCTOR_CACHE_DIR=/tmp/inductor PYTHONPATH=src \\
        torchrun --nproc_per_node 2 benchmarks/train_8b.py --plans plans/h200-2 --out out --budget 540
    PYTHONPATH=src torchrun --nproc_per_node 2 benchmarks/train_8b.py --tiny --plans plans/tiny --out out

rows.jsonl under --out gets a line after every variant, so that a run cut short loses nothing; a traced step of each
program lies beside it. The variants that matter most come first, those that may not fit last; a stock variant that
needs more memory than one that did not fit is not tried.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import ours
import stock
import torch
import torch.distributed as dist
from measuring import LLAMA_8B, PEAK, TINY, Clock, Row, Shape, batches, forget, table
from tracing import traced
from turns import Turns

FIRST = (
    stock.Variant(1, recompute=False, reshard=True),
    stock.Variant(1, recompute=True, reshard=True),
    stock.Variant(1, recompute=False, reshard=False),
    stock.Variant(2, recompute=True, reshard=True),
    stock.Variant(1, recompute=False, reshard=True, attention="flash"),
    stock.Variant(2, recompute=False, reshard=True, loss="chunked"),
    stock.Variant(2, recompute=False, reshard=True),
)
"""Tried before Fourfold's plans: the settings that were best before, each option once."""


TRACED = {"stock": 1, "fourfold": 2}
"""Variants of each program of which a step is traced, its first ones: they have one setting in common."""


def sweep() -> Iterator[stock.Variant]:
    """Every stock setting, the settled ones with the faster attention, the hungriest last."""
    for micro_batch in (1, 2, 4):
        for recompute in (True, False):
            for reshard in (True, False):
                yield stock.Variant(micro_batch, recompute, reshard)
    yield stock.Variant(1, recompute=True, reshard=True, attention="flash")
    yield stock.Variant(2, recompute=True, reshard=True, attention="flash")


class Bench:
    """The programs in turn; only one holds memory at a time."""

    def __init__(self, arguments: argparse.Namespace, shape: Shape, turns: Turns) -> None:
        self.arguments, self.shape, self.turns = arguments, shape, turns
        self.plain: stock.StockProgram | None = None
        self.planned: ours.Ours | None = None
        self.lost: list[stock.Variant] = []
        self.traced: Counter[str] = Counter()

    def run_stock(self, variants: Sequence[stock.Variant]) -> bool:
        """Runs what has not been run; False when the time is up."""
        done = {row.name for row in self.turns.rows if row.program == "stock"}
        for variant in variants:
            if str(variant) in done:
                continue
            beaten = next((v for v in self.lost if needs_more(variant, v)), None)
            if beaten is not None:
                self.turns.add(Row("stock", str(variant), error=f"not tried: out of memory already with {beaten}"))
                continue
            row = self.turns.take("stock", str(variant), partial(self._stock, variant))
            if row is None:
                return False
            if row.error:
                self.plain = None
                self.lost += [variant] if "out of memory" in row.error else []
        self.plain = None
        forget(self.shape.device)
        return True

    def _stock(self, variant: stock.Variant) -> Row:
        if self.plain is None:
            forget(self.shape.device)
            self.plain = stock.StockProgram(self.shape)
        plain = self.plain
        row = stock.run(plain, variant)
        mine = batches(self.shape, variant.micro_batch * row.ranks)[0][dist.get_rank() :: row.ranks].contiguous()
        self._trace("stock", str(variant), lambda: plain.step(mine, Clock(self.shape.device)))
        return row

    def run_ours(self, variants: Sequence[ours.Variant]) -> bool:
        """Runs the plans; False when the time is up."""
        for variant in variants:
            row = self.turns.take("fourfold", variant.name, partial(self._ours, variant))
            if row is None:
                return False
            if self.planned is not None:
                self.planned.close()
            self.planned = None
            forget(self.shape.device)
        return True

    def _ours(self, variant: ours.Variant) -> Row:
        program = self.planned = ours.made(variant, self.shape)
        row = ours.run(program, variant, self.shape)
        batch = list(batches(self.shape, variant.sequences)[0][:, :-1].unbind(0))
        self._trace("fourfold", variant.name, lambda: program.step(batch, Clock(self.shape.device)))
        return row

    def _trace(self, program: str, name: str, step: Callable[[], object]) -> None:
        """Traces the first variants of each program; a profiler that fails costs no row."""
        number = self.traced[program]
        if number >= TRACED[program] or self.arguments.no_trace:
            return
        self.traced[program] += 1
        try:
            found = traced(step, self.shape.device)
        except RuntimeError as error:
            found = {"error": str(error)}
        self.turns.write(f"trace-{program}-{number}.json", {"variant": name, **found})


def needs_more(variant: stock.Variant, other: stock.Variant) -> bool:
    """Whether a variant keeps at least as much as `other` in every respect."""
    return (
        variant.micro_batch >= other.micro_batch
        and variant.recompute <= other.recompute
        and variant.reshard <= other.reshard
        and (variant.loss == other.loss or variant.loss == "whole")
    )


def main() -> int:
    """Run all that fits the budget; 1 if nothing of a program that was asked for could be measured."""
    started = time.monotonic()
    arguments = parsed()
    real = torch.cuda.is_available() and not arguments.tiny
    device = _joined(real=real)
    config, length = (LLAMA_8B, arguments.length) if real else (TINY, 64)
    shape = Shape(config, length, device, steps=arguments.steps)
    turns = Turns(arguments.out, arguments.budget, started)
    bench = Bench(arguments, shape, turns)
    found = sorted(arguments.plans.glob("*.plan.json")) if arguments.plans else []
    plans = [ours.Variant.read(path) for path in found]
    plans = [v for v in plans if v.plan.mesh.ranks == dist.get_world_size()]
    wanted = arguments.programs
    going = "stock" not in wanted or bench.run_stock(FIRST)
    going = going and ("fourfold" not in wanted or bench.run_ours(plans))
    if going and "stock" in wanted and not arguments.brief:
        bench.run_stock(tuple(sweep()))
    if turns.rank == 0:
        _told(turns, shape)
    complete = {row.program for row in turns.rows if not row.error} >= set(wanted)
    dist.destroy_process_group()
    return 0 if complete else 1


def _told(turns: Turns, shape: Shape) -> None:
    """Prints and writes the table, best first, and the ratio of the best rows."""
    good = sorted((row for row in turns.rows if not row.error), key=lambda row: -row.per_rank)
    text = [table([*good, *(row for row in turns.rows if row.error)])]
    best = {row.program: row for row in reversed(good)}
    if {"stock", "fourfold"} <= best.keys():
        text.append(f"best fourfold / best stock: {best['fourfold'].per_rank / best['stock'].per_rank:.4f}")
    chosen = [row for row in good if row.name.startswith("planner")]
    if chosen and "stock" in best:
        text.append(f"planner's choice / best stock: {chosen[0].per_rank / best['stock'].per_rank:.4f}")
    text.append(
        f"torch {torch.__version__}, {turns.size} x {_name(shape)}; MFU of {PEAK / 1e12} TFLOP/s, causal halved"
    )
    print("\n".join(text), flush=True)
    (turns.out / "table.txt").write_text("\n".join(text) + "\n")


def _name(shape: Shape) -> str:
    return torch.cuda.get_device_name(shape.device) if shape.real else "CPU, a toy: only that it runs"


def _joined(*, real: bool) -> torch.device:
    """This process in its group, on its device; the same share of each device may be used, whoever else is on it."""
    if not real:
        torch.set_num_threads(1)
        dist.init_process_group("gloo")
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    torch.cuda.set_per_process_memory_fraction(0.97, device)
    dist.init_process_group("nccl", device_id=device)
    return device


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plans", type=Path, help="the folder plan_8b.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="a folder for rows, traces and the table")
    parser.add_argument("--budget", type=float, default=540.0, help="seconds after which no variant is begun")
    parser.add_argument("--programs", nargs="+", choices=("stock", "fourfold"), default=("stock", "fourfold"))
    parser.add_argument("--brief", action="store_true", help="only the first stock variants")
    parser.add_argument("--no-trace", action="store_true", help="profile no step")
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--steps", type=int, default=5, help="measured steps, fewer where a step is long")
    parser.add_argument("--tiny", action="store_true", help="a toy on the CPU")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
