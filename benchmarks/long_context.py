"""Train llama-8b's shape with few layers at long sequences, each shared by all ranks, beside torch's context_parallel.

    PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True TORCHINDUCTOR_CACHE_DIR=/tmp/inductor PYTHONPATH=src \\
        torchrun --nproc_per_node 2 benchmarks/long_context.py --out out --budget 540 --cases check 128k
    PYTHONPATH=src torchrun --nproc_per_node 2 benchmarks/long_context.py --out out2 --seen out/rows.jsonl --cases 32k
    PYTHONPATH=src torchrun --nproc_per_node 2 benchmarks/long_context.py --tiny --out out

rows.jsonl under --out gets a line after every variant; those in --seen are not run again. Before anything is timed,
loss and gradients are held against one rank alone (numerics.json). A step of each program's best variant is traced.
128k sweeps context_parallel's settings; the other lengths run the two that were best there.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import context_cases as cases
import ours
import stock_context as stock
import torch
import torch.distributed as dist
from context_check import check
from measuring import PEAK, Clock, Row, Shape, batches, forget, table
from tracing import traced
from train_8b import _joined, _name
from turns import Turns

from fourfold.compiler.capture import capture
from fourfold.compiler.models.llama import Llama

SWEPT = "128k"
"""The case at which every stock form is run."""


class Bench:
    """The programs in turn; only one holds memory at a time."""

    def __init__(self, turns: Turns, device: torch.device, arguments: argparse.Namespace) -> None:
        self.turns, self.device, self.arguments = turns, device, arguments
        lines = arguments.seen.read_text().splitlines() if arguments.seen else []
        self.seen = [row for row in (Row(**json.loads(line)) for line in lines) if row.program != "check"]
        self.longest = 0.0

    @property
    def rows(self) -> list[Row]:
        """All that was timed, in earlier calls first."""
        return [*self.seen, *(row for row in self.turns.rows if row.program != "check")]

    def case(self, case: cases.Case, *, least: float) -> bool:
        """Ours and stock in turn; False when the time is up. least: seconds the first variant may take."""
        shape = Shape(case.config, case.length, self.device, warmup=1, steps=3)
        with torch.device("meta"):
            model = Llama(case.config)
        graph = capture(model, torch.bfloat16 if shape.real else torch.float32, cached=False)
        ranks, self.longest = dist.get_world_size(), least
        plans = chain(cases.planned(self.arguments.plans, ranks, case), cases.variants(graph, ranks, case))
        mine = [partial(self._ours, shape, variant) for variant in plans]
        theirs = [partial(self._stock, shape, case, form) for form in self._forms(case)] if shape.real else []
        turns = (turn for pair in zip_longest(mine, theirs) for turn in pair if turn is not None)
        if not shape.real:
            self.turns.add(Row("stock", f"{case.name} cp", error="not run: context_parallel needs CUDA"))
        return all(turn() for turn in turns)

    def _forms(self, case: cases.Case) -> Sequence[stock.Variant]:
        if case.name == SWEPT:
            return stock.FORMS
        swept = {row.name: row for row in self.rows if row.program == "stock" and not row.error}
        known = [form for form in stock.FORMS if f"{SWEPT} {form}" in swept]
        known.sort(key=lambda form: -swept[f"{SWEPT} {form}"].per_rank)
        return (*known, *(form for form in stock.FORMS if form not in known))[:2]

    def _ours(self, shape: Shape, variant: ours.Variant) -> bool:
        batch = list(batches(shape, 1)[0][:, :-1].unbind(0))
        make = partial(ours.Ours, variant, shape)
        return self._take("fourfold", variant.name, make, lambda made: ours.run(made, variant, shape), batch)

    def _stock(self, shape: Shape, case: cases.Case, form: stock.Variant) -> bool:
        name = f"{case.name} {form}"
        make = partial(stock.ContextProgram, shape, form)
        return self._take("stock", name, make, lambda made: stock.run(made, name), batches(shape, 1)[0])

    def _take(self, program: str, name: str, make: Callable[[], Any], run: Callable[[Any], Row], batch: object) -> bool:
        """One variant, and its trace if it is the best so far; False when the time is up."""
        if any((row.program, row.name) == (program, name) for row in self.seen):
            return True
        held: list[Any] = []

        def turn() -> Row:
            forget(self.device)
            held.append(make())
            return run(held[0])

        row = self.turns.take(program, name, turn, least=self.longest)
        if row is not None and not row.error:
            self.longest = self.turns.last
            self._trace(row, lambda: held[0].step(batch, Clock(self.device)))
        for made in held:
            with suppress(RuntimeError):
                made.close()
        held.clear()
        forget(self.device)
        return row is not None

    def _trace(self, row: Row, step: Callable[[], object]) -> None:
        """Traces the best variant of its program and case so far; a profiler that fails costs no row."""
        case = row.name.split()[0]
        rivals = [r.per_rank for r in self.rows if r.program == row.program and r.name.split()[0] == case]
        if self.arguments.no_trace or row.per_rank < max(rivals) or not self.turns.room(2 * row.seconds + 15.0):
            return
        try:
            found = traced(step, self.device, warm=True)
        except RuntimeError as error:
            found = {"error": str(error)}
        self.turns.write(f"trace-{case}-{row.program}.json", {"variant": row.name, **found})


def told(rows: Sequence[Row]) -> Iterator[str]:
    """The table, best first in each case, and what the best of ours is to the best of stock."""
    order = list(dict.fromkeys(row.name.split()[0] for row in rows))
    for case in order:
        mine = [row for row in rows if row.name.split()[0] == case]
        good = sorted((row for row in mine if not row.error), key=lambda row: -row.per_rank)
        yield table([*good, *(row for row in mine if row.error)])
        best = {row.program: row.per_rank for row in reversed(good)}
        if {"stock", "fourfold"} <= best.keys():
            yield f"{case}: best fourfold / best stock: {best['fourfold'] / best['stock']:.4f}"


def main() -> int:
    """Checks, then all cases; 1 if nothing could be measured."""
    started = time.monotonic()
    arguments = parsed()
    real = torch.cuda.is_available() and not arguments.tiny
    device = _joined(real=real)
    turns = Turns(arguments.out, arguments.budget, started, limit=arguments.limit)
    if "check" in arguments.cases:
        check(turns, device, real=real)
    bench = Bench(turns, device, arguments)
    chosen = [cases.CASES[name] for name in arguments.cases if name != "check"] if real else [cases.TOY]
    for case in chosen:
        if not bench.case(case, least=60.0 if real else 0.0):
            break
    if turns.rank == 0:
        where = f"{turns.size} x {_name(Shape(cases.TOY.config, 1, device))}"
        text = "\n".join(
            (*told(bench.rows), f"torch {torch.__version__}, {where}; MFU of {PEAK / 1e12} TFLOP/s, causal halved")
        )
        print(text, flush=True)
        (turns.out / "table.txt").write_text(text + "\n")
    dist.destroy_process_group()
    return 0 if any(not row.error for row in turns.rows) else 1


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder for rows, traces and the table")
    parser.add_argument("--budget", type=float, default=540.0, help="seconds after which no variant is begun")
    parser.add_argument("--limit", type=float, default=240.0, help="seconds a variant may take before the run ends")
    parser.add_argument("--cases", nargs="+", choices=("check", *cases.CASES), default=("check", *cases.CASES))
    parser.add_argument("--plans", type=Path, help="the folder plan_context.py wrote: run first")
    parser.add_argument("--seen", type=Path, help="rows.jsonl of an earlier call")
    parser.add_argument("--no-trace", action="store_true", help="profile no step")
    parser.add_argument("--tiny", action="store_true", help="a toy on the CPU, ours alone")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
