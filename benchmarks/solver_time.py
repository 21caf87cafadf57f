"""How long `auto` takes to place a batch, against sequences and ranks, and the gap it stops at. Needs no GPU.

    PYTHONPATH=src python benchmarks/solver_time.py --out benchmarks/results/solver-time
    PYTHONPATH=src python benchmarks/solver_time.py --out benchmarks/results/solver-time --only 512x64

Each point: lengths as in pre-training (shipped table) drawn with a fixed seed, Llama-8B's terms on H200 nodes, 16,384
tokens a rank, ZeRO-1. The search may stop 3 % above the lower bound; what it reached is written. Seconds are of the
process, on one core, as the search uses no more; `first` is a process's first batch, which makes the tables of methods,
`solving` any later one. The picture needs the extra `viz`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random

import torch
from placement import ROOM, static

from fourfold.compiler.capture import capture
from fourfold.compiler.cli.asking import lengths_file
from fourfold.compiler.models import from_reference
from fourfold.hardware import load
from fourfold.ir.batch_rules import complaints
from fourfold.passes.batch.auto import auto
from fourfold.passes.batch.timing.terms import Terms
from fourfold.passes.batch.timing.timing import timed

GAP = 0.03
POINTS = (
    *((sequences, 64) for sequences in (128, 256, 512, 1024, 2048, 4096)),
    *((512, ranks) for ranks in (8, 16, 32, 128, 256)),
    *((8 * ranks // 3, ranks) for ranks in (384, 1536, 3072, 6144, 12_288)),
)
"""(sequences, ranks): more sequences on as many ranks, more ranks for as many sequences, and both."""


@dataclass(frozen=True, slots=True)
class Point:
    """One batch: what it is, seconds of solving, the gap reached."""

    sequences: int
    ranks: int
    tokens: int
    longest: int
    micro_steps: int
    first: float
    solving: float
    gap: float

    def __str__(self) -> str:
        return (
            f"{self.sequences:6d} sequences x {self.ranks:6d} ranks  {self.solving:7.2f} s (first {self.first:6.2f} s)"
            f"  gap {self.gap:6.2%}  {self.micro_steps} micro-steps, {self.tokens:,} tokens, longest {self.longest:,}"
        )


def drawn(count: int, name: str = "pretrain") -> list[int]:
    """Lengths from a shipped table."""
    known = [int(word) for word in lengths_file(name).read_text().split("\n") if word.isdigit()]
    return Random(0).choices(known, k=count)


def solved(terms: Terms, sequences: int, ranks: int) -> Point:
    """Placed twice, the second time with tables known."""
    machine = load(f"dgx-h200:{max(1, ranks // 8)}")
    here = replace(terms, machine=machine, bounds=replace(terms.bounds, ranks=ranks))
    lengths, taken = drawn(sequences), []
    for _ in range(2):
        started = time.process_time()
        batch = auto(lengths, here, gap=GAP)
        taken.append(time.process_time() - started)
    assert not complaints(batch, here.bounds)
    gap = timed(batch, here).gap
    return Point(sequences, ranks, sum(lengths), max(lengths), batch.micro_steps, *taken, gap)


def drawing(points: Sequence[Point], path: Path) -> None:
    """Seconds against sequences and against ranks, both logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "fourfold", "svg.fonttype": "none"})
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(8, 3.2), sharey=True)
    rows = (
        (left, "sequences, on 64 ranks", [(p.sequences, p) for p in points if p.ranks == 64]),
        (right, "ranks, 512 sequences", [(p.ranks, p) for p in points if p.sequences == 512]),
        (right, "ranks, 8 sequences for 3 ranks", [(p.ranks, p) for p in points if p.ranks >= 384]),
    )
    for axes, name, found in rows:
        found = sorted(found, key=lambda one: one[0])
        axes.loglog([x for x, _ in found], [p.solving for _, p in found], marker="o", label=name)
        axes.legend(fontsize=8)
    left.set_ylabel("seconds of a core")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> int:
    """Time all points, print them and write points.json and growth.svg."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="SxR", help="sequences x ranks; repeatable; draws nothing")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    with torch.device("meta"):
        graph = capture(from_reference("llama-8b", {}), torch.bfloat16)
    terms = static(graph, "dgx-h200:8", tp=1, zero=1, capacity=ROOM)
    wanted = [tuple(map(int, text.split("x"))) for text in arguments.only or ()] or POINTS
    arguments.out.mkdir(parents=True, exist_ok=True)
    found = []
    for sequences, ranks in wanted:
        found.append(solved(terms, sequences, ranks))
        print(found[-1], flush=True)
        name = "only.json" if arguments.only else "points.json"
        (arguments.out / name).write_text(json.dumps([asdict(point) for point in found], indent=1) + "\n")
    if not arguments.only:
        drawing(found, arguments.out / "growth.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
