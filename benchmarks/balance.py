"""How far `bytescale` is above the bound on 64 ranks, for every shipped list of lengths. Needs no GPU; two minutes.

    PYTHONPATH=src python benchmarks/balance.py --out benchmarks/results/balance

Llama-8B's terms on eight H200 nodes, ZeRO 1, room for 8,192 or 16,384 tokens a rank, batches of 4,096 sequences drawn
with a fixed seed. Balance is the mean rank's work over the fullest rank's. Two bounds: the one that holds for this
placement, and that of placements which leave nothing to the host's memory.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from placement import static
from solver_time import drawn

from fourfold.compiler.capture import capture
from fourfold.compiler.models import from_reference
from fourfold.ir.batch_rules import complaints
from fourfold.passes.batch.bytescale import bytescale
from fourfold.passes.batch.timing.bounding import bound
from fourfold.passes.batch.timing.timing import timed

LISTS = ("wikipedia", "prolong", "pretrain", "commoncrawl", "heavy")
SEQUENCES = 4096


def rows() -> Iterator[str]:
    """A line for each list and room."""
    with torch.device("meta"):
        graph = capture(from_reference("llama-8b", {}), torch.bfloat16)
    yield f"{'room':>6}  {'lengths':<12}{'step':>9}{'balance':>9}{'over bound':>12}{'over that of no offload':>25}"
    for capacity in (8192, 16384):
        terms = static(graph, "dgx-h200:8", tp=1, zero=1, capacity=capacity)
        for name in LISTS:
            lengths = drawn(SEQUENCES, name)
            batch = bytescale(lengths, terms)
            assert not complaints(batch, terms.bounds)
            timing = timed(batch, terms)
            plain = timing.seconds / (terms.once + bound(lengths, terms)) - 1.0
            figures = f"{timing.seconds:>7.3f} s{timing.balance:>9.1%}{timing.gap:>12.2%}{plain:>25.2%}"
            yield f"{capacity:>6}  {name:<12}{figures}"


def main() -> int:
    """Prints the table and writes it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    lines = []
    for line in rows():
        print(line, flush=True)
        lines.append(line)
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.txt").write_text("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
