"""Train changing batches through `fourfold.compile(batches=..)`: placed while the batch before trains, on all ranks.

    PYTHONPATH=src python benchmarks/plan_varlen.py --gpus 2 --fixed --out plans/varlen-2
    PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True TORCHINDUCTOR_CACHE_DIR=/tmp/inductor PYTHONPATH=src \\
        torchrun --nproc_per_node 2 benchmarks/online.py --plans plans/varlen-2 --case prolong --out out
    PYTHONPATH=src torchrun --nproc_per_node 2 benchmarks/online.py --toy --plans plans/varlen-toy --out out

Every program starts from the same weights and trains on the same batches, each of other lengths; losses and gradient
norms must agree step by step. A row of online.jsonl is one program: seconds of each step, where placements came from
(fourfold.compiler.online), and the bytes of the fullest rank. The policies of forced.py leave half of what is kept to
the host's memory, move tokens in every micro-step, and, on four GPUs and more, exchange heads by twos in a ring.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import forced
import torch
import torch.distributed as dist
from measuring import Row, finish, forget
from train_8b import _joined
from turns import Turns
from varlen import documents
from varlen_cases import CASES, TOY, Case

import fourfold
from fourfold.backends.program import Options
from fourfold.compiler.models.llama import Llama
from fourfold.compiler.online import Online
from fourfold.compiler.online.log import Replay
from fourfold.compiler.online.placer import Placer
from fourfold.ir.plan import Plan
from fourfold.passes.batch.timing.timing import timed

RATE = 1e-4
AGREES = 2e-3
"""Of losses and norms between programs, relative: bf16 adds up tokens in other orders."""


def programs(out: Path) -> Mapping[str, Online]:
    """How batches are placed, by name; the first is what the others are held against."""
    known = {
        "pack": Online("pack", deterministic=True),
        "auto": Online("auto"),
        "auto, replayed": Online("auto", replay=out / "auto.jsonl"),
        "auto, waited for": Online("auto", deterministic=True),
        "half in the host's memory": Online(forced.offloaded, deterministic=True),
        "tokens moved": Online(forced.moved, deterministic=True),
        "zeppelin": Online("zeppelin", deterministic=True),
    }
    if dist.get_world_size() > 2:
        known["heads by twos"] = Online(forced.by_twos, deterministic=True)
    return {name: replace(online, log=out / f"{name}.jsonl") for name, online in known.items()}


class Bench:
    """One plan and its batches; programs in turn."""

    def __init__(self, case: Case, plan: Path, *, steps: int, device: torch.device) -> None:
        self.case, self.plan, self.device = case.sized(Plan.load(plan).capacity), plan, device
        self.real = device.type == "cuda"
        cases = [replace(self.case, seed=case.seed + step) for step in range(steps)]
        self.batches = [documents(one, dist.get_world_size()) for one in cases]
        self.lengths = [[len(one) for one in batch] for batch in self.batches]

    def row(self, name: str, online: Online) -> Row:
        """One program from its first weights through all batches; the next one is hinted while one trains."""
        forget(self.device)
        with torch.device("meta"):
            model = Llama(self.case.config)
        options = Options(compile=self.real, device=self.device)
        program = fourfold.compile(model, self.plan, options=options, batches=online)
        program.init(0)
        optimizer = torch.optim.AdamW(program.parameters(), lr=RATE, fused=self.real)
        if self.real:
            torch.cuda.reset_peak_memory_stats(self.device)
        seconds, losses, norms = [], [], []
        program.ahead(self.lengths[0])
        for step, batch in enumerate(self.batches):
            if step + 1 < len(self.batches):
                program.ahead(self.lengths[step + 1])
            dist.barrier()
            finish(self.device)
            began = time.perf_counter()
            losses.append(program.step(batch))
            norms.append(program.clip_grad_norm_(1.0))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            finish(self.device)
            seconds.append(time.perf_counter() - began)
        placer = program.placement
        assert isinstance(placer, Placer)
        placer.close()
        dist.barrier()
        guesses = self.predicted(placer, Path(str(online.log)))
        tokens = sum(sum(lengths) for lengths in self.lengths)
        found = {"seconds": seconds, "losses": losses, "norms": norms, "origins": dict(placer.counts)}
        found["host"] = program.engine.host.pages * program.engine.host.page
        memory = torch.cuda.memory_stats(self.device) if self.real else {}
        steady = median(seconds[1:])
        return Row(
            "fourfold",
            name,
            tokens // len(self.batches),
            dist.get_world_size(),
            seconds=steady,
            spread=max(seconds[1:]) - min(seconds[1:]),
            per_rank=tokens / len(self.batches) / steady / dist.get_world_size(),
            first=seconds[0],
            loss=losses[-1],
            allocated=memory.get("allocated_bytes.all.peak", 0),
            reserved=memory.get("reserved_bytes.all.peak", 0),
            predicted_seconds=median(guesses[1:]),
            settings=found,
        )

    def predicted(self, placer: Placer, log: Path) -> list[float]:
        """Seconds of each step by the price of its placement, as the first rank logged it."""
        placed = Replay.read(log)
        batches = [placed.of(step, tuple(lengths)) for step, lengths in enumerate(self.lengths)]
        return [timed(batch, placer.chooser.terms).seconds for batch in batches]


def main() -> int:
    """Run all programs that fit the budget; 1 where one failed or disagrees with the first."""
    started = time.monotonic()
    arguments = parsed()
    real = torch.cuda.is_available() and not arguments.toy
    device = _joined(real=real)
    turns = Turns(arguments.out, arguments.budget, started)
    case = (CASES if real else TOY)[arguments.case]
    bench = Bench(case, arguments.plans / case.name / "plan.json", steps=arguments.steps, device=device)
    for name, online in programs(arguments.out).items():
        if arguments.only and name not in arguments.only:
            continue
        if turns.take("fourfold", f"{case.name}: {name}", partial(bench.row, f"{case.name}: {name}", online)) is None:
            break
    worst = told(turns)
    dist.destroy_process_group()
    return 0 if worst <= AGREES and all(not row.error for row in turns.rows) else 1


def told(turns: Turns) -> float:
    """Prints each program beside the first; the worst difference of a loss or a norm."""
    good = [row.settings | {"name": row.name} for row in turns.rows if not row.error]
    worst = max((apart(good[0], one) for one in good[1:]), default=0.0)
    if turns.rank == 0:
        for row in turns.rows:
            print(line(row, good[0] if good else {}), flush=True)
        (turns.out / "online.json").write_text(json.dumps(good, indent=1) + "\n")
    return worst


def apart(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """The largest relative difference of two programs' losses and norms, step by step."""
    pairs = (pair for what in ("losses", "norms") for pair in zip(one[what], other[what], strict=True))
    return max(abs(a - b) / abs(a) for a, b in pairs)


def line(row: Row, first: Mapping[str, Any]) -> str:
    """One row as text."""
    if row.error:
        return f"{row.name:<40} {row.error}"
    origins = ", ".join(f"{many} {name}" for name, many in row.settings["origins"].items() if many)
    memory = f"{row.allocated / 1e9:6.1f} GB, {row.settings['host'] / 1e9:5.1f} GB in the host"
    seconds = f"{row.seconds:8.3f} s, predicted {row.predicted_seconds:.3f},"
    return f"{row.name:<40}{seconds} {memory}, apart {apart(first, row.settings):.1e}; {origins}"


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plans", type=Path, required=True)
    parser.add_argument("--case", default="prolong")
    parser.add_argument("--only", nargs="*", help="names of programs")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--budget", type=float, default=540.0, help="seconds after which no program is begun")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
