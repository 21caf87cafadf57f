"""Train batches of uneven lengths: each policy's placement beside stock PyTorch that packs, in one run, one clock.

    PYTHONPATH=src python benchmarks/plan_varlen.py --gpus 2 --out plans/varlen-2
    PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True TORCHINDUCTOR_CACHE_DIR=/tmp/inductor PYTHONPATH=src \\
        torchrun --nproc_per_node 2 benchmarks/varlen.py --plans plans/varlen-2 --out out --budget 540
    PYTHONPATH=src torchrun --nproc_per_node 2 benchmarks/varlen.py --toy --plans plans/varlen-toy --out out

A row is one placement or one stock setting on one batch: the median of two to nine steps after one that warms up, and a
traced step's communication that no computation hides. rows.jsonl gets a line after each, with how often the
allocator had to give memory back (retries). Where placements are alike, the
policies' names share a row.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from measuring import Clock, Row, Shape, finish, forget
from stock_varlen import Bin, Variant, VarlenProgram, bins
from torch import Tensor
from tracing import traced
from train_8b import _joined
from turns import Turns
from varlen_cases import CASES, TOY, Case

from fourfold.backends.program import Options, Program
from fourfold.compiler.models.llama import Llama
from fourfold.ir.batch import BatchPlan
from fourfold.ir.plan import Plan
from fourfold.ir.schedule import Schedule

SEEN = ("seconds", "computation", "communication", "exposed", "idle", "exposed_share", "kinds")
STEPS = 2
"""Timed steps of a variant, at least."""
ENOUGH, MOST = 4.0, 9
"""Seconds that timed steps should fill, and how many of them at most: short ones differ more."""


@dataclass
class Placed:
    """Placements made beforehand: the one set last is that of every batch."""

    batch: BatchPlan | None = None
    orders: Sequence[str] = ()

    def ahead(self, lengths: Sequence[int]) -> None:
        """Nothing is left to be placed."""

    def learn(self, rank: int, seconds: float, tokens: int) -> None:
        """Placements are made."""

    def place(self, lengths: Sequence[int], step: int | None = None) -> BatchPlan:
        """The one that was set."""
        assert self.batch is not None and tuple(lengths) == self.batch.lengths
        return self.batch

    def schedule(self, batch: BatchPlan, rank: int) -> Schedule:
        """Made with it."""
        return Schedule.parse(self.orders[rank])


class Bench:
    """One case: programs in turn, of which one holds memory at a time."""

    def __init__(self, case: Case, folder: Path, turns: Turns, *, device: torch.device, steps: int) -> None:
        self.folder, self.turns, self.device, self.steps = folder, turns, device, steps
        self.plan = Plan.load(folder / "plan.json")
        self.case = case = case.sized(self.plan.capacity)
        self.shape = Shape(case.config, case.capacity, device)
        self.documents = documents(case, dist.get_world_size())
        lengths = [len(one) for one in self.documents]
        self.flops = flops(case, lengths) / dist.get_world_size()
        self.targets = sum(n - 1 for n in lengths)

    def ours(self) -> bool:
        """Every placement on one program; False when the time is up."""
        holder = Placed()
        with torch.device("meta"):
            model = Llama(self.case.config)
        options = Options(compile=self.shape.real, device=self.device)
        program = Program(model, self.plan, self.plan.graph, options, placement=holder)
        program.init(0)
        # Weights stay as they are: every placement must find the same loss and the same norm of all gradients.
        optimizer = torch.optim.AdamW(program.parameters(), lr=0.0, fused=self.shape.real)
        norms: list[float] = []
        told = {path.stem: json.loads(path.read_text()) for path in sorted(self.folder.glob("*.json")) if is_told(path)}

        def step(clock: Clock) -> float:
            loss = program.step(self.documents)
            if not norms:
                norms.append(float(program.clip_grad_norm_(1e9)))
            clock.mark("optimizer")
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return loss

        for name in sorted({one["placement"] for one in told.values()}, key=lambda name: told[name]["seconds"]):
            holder.batch = BatchPlan.read((self.folder / f"{name}.batch.json").read_text())
            holder.orders = told[name]["orders"]
            alike = [other for other, one in told.items() if one["placement"] == name]
            row = self._row("fourfold", ", ".join([name, *(other for other in alike if other != name)]))
            row = replace(row, predicted_seconds=told[name]["seconds"])
            norms.clear()
            if self.turns.take("fourfold", row.name, partial(self._measured, row, step, norms)) is None:
                return False
        return True

    def stock(self, variants: Sequence[Variant]) -> bool:
        """Every stock setting on one program; False when the time is up."""
        program = VarlenProgram(self.shape)
        for variant in variants:
            held = bins([len(one) for one in self.documents], variant.capacity, dist.get_world_size())
            mine = [
                Bin.of([self.documents[i] for i in one], variant.capacity)
                for one in held[dist.get_rank() :: dist.get_world_size()]
            ]
            row = self._row("stock", str(variant))
            turn = partial(self._stocked, program, variant, mine, row)
            taken = self.turns.take("stock", row.name, turn)
            if taken is None:
                return False
            if taken.error:
                break
        return True

    def _stocked(self, program: VarlenProgram, variant: Variant, mine: Sequence[Bin], row: Row) -> Row:
        program.choose(variant)
        return self._measured(row, lambda clock: program.steps(mine, self.targets, clock))

    def _row(self, program: str, name: str) -> Row:
        tokens = sum(len(one) for one in self.documents)
        return Row(program, f"{self.case.name}: {name}", tokens, dist.get_world_size())

    def _measured(self, row: Row, step: Callable[[Clock], float], norms: Sequence[float] = ()) -> Row:
        """The row with its figures: one step warms up, the next are timed, one is traced."""
        started = time.perf_counter()
        step(Clock(self.device))
        finish(self.device)
        first = time.perf_counter() - started
        if self.shape.real:
            torch.cuda.reset_peak_memory_stats(self.device)
        loss, before = self._timed(step)
        seconds = [before, *(self._timed(step)[1] for _ in range(self._more(before)))]
        median = statistics.median(seconds)
        memory = torch.cuda.memory_stats(self.device) if self.shape.real else {}
        found = replace(
            row,
            seconds=median,
            spread=max(seconds) - min(seconds),
            per_rank=row.tokens / median / row.ranks,
            mfu=self.flops / median / 989.4e12,
            allocated=memory.get("allocated_bytes.all.peak", 0),
            reserved=memory.get("reserved_bytes.all.peak", 0),
            first=first,
            loss=loss,
        )
        seen = traced(lambda: step(Clock(self.device)), self.device, warm=True)
        kept = {name: seen[name] for name in SEEN if name in seen}
        kept |= {"retries": memory.get("num_alloc_retries", 0), "steps": len(seconds)}
        return replace(found, settings={**kept, "norm": norms[0] if norms else None, "kernels": seen["kernels"][:12]})

    def _timed(self, step: Callable[[Clock], float]) -> tuple[float, float]:
        """The loss of a step, and its seconds."""
        dist.barrier()
        finish(self.device)
        began = time.perf_counter()
        loss = step(Clock(self.device))
        finish(self.device)
        return loss, time.perf_counter() - began

    def _more(self, seconds: float) -> int:
        """How many steps are timed beside the first, as the first rank says after it."""
        many = torch.tensor(max(self.steps, min(MOST, int(ENOUGH / seconds))) - 1, device=self.device)
        dist.broadcast(many, 0)
        return int(many)


def is_told(path: Path) -> bool:
    """Whether a file says what a placement is predicted to take."""
    return path.name != "plan.json" and not path.name.endswith(".batch.json")


def documents(case: Case, ranks: int) -> list[Tensor]:
    """Random tokens of the case's lengths, the same on every rank."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = case.config.vocabulary
    return [torch.randint(0, vocabulary, (n,), generator=generator) for n in case.lengths(ranks)]


def flops(case: Case, lengths: Sequence[int]) -> float:
    """Model FLOPs of a step on all ranks: causal attention halved, nothing replayed."""
    c = case.config
    block = c.width * (2 * c.width + 2 * c.kv_heads * c.width // c.heads + 3 * c.feed_forward)
    weights = c.layers * block + c.vocabulary * c.width
    return 6.0 * weights * sum(lengths) + 6.0 * c.width * c.layers * sum(float(n) * n for n in lengths)


def variants(case: Case, lengths: Sequence[int]) -> Iterator[Variant]:
    """Stock settings, the ones that were best before first; bins hold the longest document."""
    longest = -(-max(lengths) // 1024) * 1024
    small, large = (max(longest, min(case.capacity, size)) for size in (65536, 131072))
    if case.name == "tailed":
        yield Variant(max(longest, case.capacity), recompute=True, reshard=False)
        return
    yield Variant(small, recompute=False, reshard=False)
    yield Variant(large, recompute=True, reshard=False)
    yield Variant(small, recompute=False, reshard=True)


def main() -> int:
    """Run all cases that fit the budget; 1 if nothing could be measured."""
    started = time.monotonic()
    arguments = parsed()
    real = torch.cuda.is_available() and not arguments.toy
    device = _joined(real=real)
    turns = Turns(arguments.out, arguments.budget, started)
    cases: Mapping[str, Case] = CASES if real else TOY
    for name in arguments.cases or cases:
        folder = arguments.plans / name
        if not (folder / "plan.json").exists():
            continue
        bench = Bench(cases[name], folder, turns, device=device, steps=arguments.steps)
        settings = tuple(variants(bench.case, [len(one) for one in bench.documents]))[: arguments.stock]
        going = "stock" not in arguments.programs or bench.stock(settings)
        forget(device)
        if not going or ("fourfold" in arguments.programs and not bench.ours()):
            break
        forget(device)
    if turns.rank == 0:
        told(turns)
    good = any(not row.error for row in turns.rows)
    dist.destroy_process_group()
    return 0 if good else 1


def told(turns: Turns) -> None:
    """Prints and writes what was found, case by case."""
    lines = []
    for case in dict.fromkeys(row.name.split(":")[0] for row in turns.rows):
        rows = [row for row in turns.rows if row.name.startswith(f"{case}:")]
        good = sorted((row for row in rows if not row.error), key=lambda row: row.seconds)
        best = {row.program: row for row in reversed(good)}
        for row in (*good, *(row for row in rows if row.error)):
            lines.append(line(row))
        if {"stock", "fourfold"} <= best.keys():
            auto = next((row for row in good if "auto" in row.name), best["fourfold"])
            lines.append(f"{case}: auto / best stock {best['stock'].seconds / auto.seconds:.3f}")
    print("\n".join(lines), flush=True)
    (turns.out / "table.txt").write_text("\n".join(lines) + "\n")


def line(row: Row) -> str:
    """One row as text."""
    start = f"{row.program:<9}{row.name:<72}"
    if row.error:
        return f"{start}{row.error.splitlines()[0][:80]}"
    predicted = f"{row.predicted_seconds:8.3f}" if row.predicted_seconds else " " * 8
    exposed = row.settings.get("exposed_share")
    share = f"{exposed:6.1%}" if exposed is not None else " " * 6
    norm = row.settings.get("norm")
    share += f", loss {row.loss:.5f}" + (f", norm {norm:.4f}" if norm is not None else "")
    figures = f"{row.seconds:8.3f} s {predicted} {row.per_rank:9.0f} tok/s/GPU {row.mfu:6.1%}"
    return f"{start}{figures} {row.allocated / 1e9:6.1f} GB, exposed {share}"


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plans", type=Path, required=True)
    parser.add_argument("--cases", nargs="*")
    parser.add_argument("--programs", nargs="*", default=["stock", "fourfold"])
    parser.add_argument("--stock", type=int, default=2, help="stock settings of a case, at most")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--budget", type=float, default=540.0, help="seconds")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
