"""Train llama-8b's shape with few layers at long sequences, each shared by all ranks, beside torch's context_parallel.

    PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True PYTHONPATH=src \\
        torchrun --nproc_per_node 2 benchmarks/long_context.py --out out --budget 540 --cases 128k
    PYTHONPATH=src torchrun --nproc_per_node 2 benchmarks/long_context.py --tiny --out out

rows.jsonl under --out gets a line after every variant. Before anything is timed, loss and gradient norm of two ranks
that share a sequence are held against one rank alone, in bf16, for each method.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import ours
import torch
import torch.distributed as dist
from measuring import LLAMA_8B, TINY, Clock, Row, Shape, batches, finish, forget, table
from tracing import traced
from train_8b import _joined, _name
from turns import Turns

from fourfold.compiler.capture import capture
from fourfold.compiler.models.llama import Llama, LlamaConfig
from fourfold.ir.graph import Graph
from fourfold.ir.mesh import Mesh
from fourfold.ir.plan import Layout, Plan, Precision, Sharing
from fourfold.ir.workload import Workload


@dataclass(frozen=True, slots=True)
class Case:
    """A length and a depth."""

    name: str
    length: int
    layers: int


CASES = {c.name: c for c in (Case("32k", 2**15, 8), Case("128k", 2**17, 8), Case("512k", 2**19, 1))}
TOY = Case("toy", 64, 2)

SHARINGS = (
    ("ring, zigzag", Sharing("ring", "zigzag", 1, "bfloat16"), "none", 3),
    ("gather_kv, zigzag", Sharing("gather_kv", "zigzag", 1, "bfloat16"), "none", 3),
    ("ulysses", Sharing("ulysses", "contiguous", 0, "bfloat16"), "none", 3),
    ("ring, zigzag, fp32 dKV", Sharing("ring", "zigzag", 1, "float32"), "none", 3),
    ("ring, zigzag, ZeRO 1", Sharing("ring", "zigzag", 1, "bfloat16"), "none", 1),
    ("ring, zigzag, regions", Sharing("ring", "zigzag", 1, "bfloat16"), "regions", 3),
)
"""Name, sharing (ulysses 0: all ranks), recompute, ZeRO."""


def plan_of(graph: Graph, ranks: int, case: Case, sharing: Sharing, recompute: str, zero: int) -> Plan:
    """All ranks share one sequence a step."""
    how = replace(sharing, ulysses=sharing.ulysses or ranks)
    compute = next(iter(graph.blocks.values()))
    dtype = next(v.dtype for v in compute.parameters.values())
    precision = Precision.bf16 if dtype == "bfloat16" else Precision.fp32
    return Plan(
        graph,
        {},
        Workload.fixed(length=case.length, sequences=1),
        Mesh(sp=ranks),
        zero,
        precision,
        capacity=case.length // ranks,
        bucket=128 if case.length > 4096 else 8,
        layouts={name: Layout() for name in graph.blocks},
        recompute=(recompute,) * len(graph.calls),
        sharing=how,
    )


class Bench:
    """The programs in turn; only one holds memory at a time."""

    def __init__(self, turns: Turns, device: torch.device, *, real: bool) -> None:
        self.turns, self.device, self.real = turns, device, real
        self.best: dict[str, float] = {}

    def case(self, case: Case, *, brief: bool) -> None:
        """Every variant of one case, ours and stock in turn."""
        config = replace(LLAMA_8B if self.real else TINY, layers=case.layers)
        shape = Shape(config, case.length, self.device, warmup=2, steps=3)
        with torch.device("meta"):
            model = Llama(config)
        graph = capture(model, torch.bfloat16 if self.real else torch.float32, cached=False)
        mine = [partial(self.ours, shape, graph, case, *words) for words in SHARINGS[: 3 if brief else None]]
        theirs = list(self.stock(shape, config, case, brief=brief)) if self.real else []
        for pair in zip(mine, [*theirs, *[None] * len(mine)], strict=False):
            for turn in pair:
                if turn is not None and turn() is None:
                    return
        for turn in theirs[len(mine) :]:
            if turn() is None:
                return

    def ours(
        self, shape: Shape, graph: Graph, case: Case, name: str, sharing: Sharing, recompute: str, zero: int
    ) -> Row | None:
        """One of our variants; the first of a case is traced, too."""
        plan = plan_of(graph, dist.get_world_size(), case, sharing, recompute, zero)
        variant = ours.Variant(f"{case.name} {name}", plan)

        def turn() -> Row:
            forget(self.device)
            program = ours.Ours(variant, shape)
            row = ours.run(program, variant, shape)
            if name == SHARINGS[0][0]:
                batch = list(batches(shape, 1)[0][:, :-1].unbind(0))
                self._trace(f"trace-{case.name}-fourfold.json", lambda: program.step(batch, Clock(self.device)))
            program.close()
            return row

        found = self.turns.take("fourfold", variant.name, turn)
        forget(self.device)
        return found

    def stock(
        self, shape: Shape, config: LlamaConfig, case: Case, *, brief: bool
    ) -> Iterator[Callable[[], Row | None]]:
        """context_parallel's variants, best guesses first."""
        import stock_context as stock

        variants = [
            stock.Variant("cudnn", compiled=True, grouped=True, recompute=False, rotate="alltoall"),
            stock.Variant("flash", compiled=True, grouped=True, recompute=False, rotate="alltoall"),
            stock.Variant("cudnn", compiled=True, grouped=False, recompute=False, rotate="allgather"),
            stock.Variant("cudnn", compiled=False, grouped=True, recompute=False, rotate="allgather"),
            stock.Variant("flash", compiled=False, grouped=False, recompute=False, rotate="alltoall"),
            stock.Variant("cudnn", compiled=True, grouped=True, recompute=True, rotate="allgather"),
            stock.Variant("cudnn", compiled=False, grouped=False, recompute=True, rotate="alltoall"),
        ]
        for variant in variants[: 3 if brief else None]:

            def turn(variant: stock.Variant = variant) -> Row:
                forget(self.device)
                program = stock.ContextProgram(shape, config, variant)
                row = stock.run(program, shape, 1)
                if variant == variants[0]:
                    batch = batches(shape, 1)[0]
                    self._trace(f"trace-{case.name}-stock.json", lambda: program.step(batch, Clock(self.device)))
                return replace(row, name=f"{case.name} {row.name}")

            yield partial(self.turns.take, "stock", f"{case.name} {variant}", turn)

    def _trace(self, name: str, step: Callable[[], object]) -> None:
        try:
            self.turns.write(name, traced(step, self.device))
        except RuntimeError as error:
            self.turns.write(name, {"error": str(error)})


def numerics(device: torch.device, *, real: bool) -> dict[str, float]:
    """The loss of a step shared by all ranks, by each method, beside the whole sequence on each rank (dp, alike)."""
    config = replace(LLAMA_8B, layers=2, vocabulary=8192) if real else TINY
    case = Case("check", 8192 if real else 64, 2)
    shape = Shape(config, case.length, device, steps=1)
    with torch.device("meta"):
        model = Llama(config)
    graph = capture(model, torch.bfloat16 if real else torch.float32, cached=False)
    ranks = dist.get_world_size()
    batch = batches(shape, 1)[0][:, :-1]
    alone = replace(plan_of(graph, ranks, case, Sharing(), "none", 0), mesh=Mesh(dp=ranks), capacity=case.length)
    plans = {"alone": alone} | {n: plan_of(graph, ranks, case, s, r, z) for n, s, r, z in SHARINGS[:3]}
    found: dict[str, float] = {}
    for name, plan in plans.items():
        forget(device)
        program = ours.Ours(ours.Variant(name, plan), shape)
        rows = list(batch.unbind(0)) * (ranks if name == "alone" else 1)
        found[f"{name} loss"] = program.program.step(rows)
        found[f"{name} norm"] = program.program.clip_grad_norm_(1e9)
        finish(device)
        program.close()
        del program
    return found


def main() -> int:
    """Checks, then all cases; 1 if nothing could be measured."""
    started = time.monotonic()
    arguments = parsed()
    real = torch.cuda.is_available() and not arguments.tiny
    device = _joined(real=real)
    turns = Turns(arguments.out, arguments.budget, started)
    turns.write("numerics.json", numerics(device, real=real))
    bench = Bench(turns, device, real=real)
    for case in [CASES[name] for name in arguments.cases] if real else [TOY]:
        bench.case(case, brief=arguments.brief or case.name != "128k")
    good = sorted((row for row in turns.rows if not row.error), key=lambda row: -row.per_rank)
    if turns.rank == 0:
        text = table([*good, *(row for row in turns.rows if row.error)])
        shape = Shape(LLAMA_8B if real else TINY, 1, device)
        text += f"\ntorch {torch.__version__}, {turns.size} x {_name(shape)}"
        print(text, flush=True)
        (turns.out / "table.txt").write_text(text + "\n")
    dist.destroy_process_group()
    return 0 if good else 1


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder for rows, traces and the table")
    parser.add_argument("--budget", type=float, default=540.0, help="seconds after which no variant is begun")
    parser.add_argument("--cases", nargs="+", choices=tuple(CASES), default=tuple(CASES))
    parser.add_argument("--brief", action="store_true", help="only the first variants of each program")
    parser.add_argument("--tiny", action="store_true", help="a toy on the CPU, ours alone")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
