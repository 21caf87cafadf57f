"""Bytes a second between each GPU and the host's memory, as offloading copies them: page by page, all GPUs at once.

    PYTHONPATH=src torchrun --nproc_per_node 2 benchmarks/host_copies.py --out out/host_copies.json

Out and back run alone, together, and beside matrix products, whose own slowing is shown; pages are those of the product
(backends/stage/host.py) and, for comparison, larger. Medians of turns, of the slowest GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist

from fourfold.backends.stage.host import PAGE

TOTAL = 4 * 2**30
TURNS = 5


def main() -> int:
    """Prints a line for each way, and writes them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", device_id=device)
    found = [row for page in (PAGE, 16 * PAGE) for row in rows(page, device)]
    if dist.get_rank() == 0:
        for row in found:
            print(row, flush=True)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    dist.destroy_process_group()
    return 0


def rows(page: int, device: torch.device) -> list[dict[str, object]]:
    """What pages of this size reach."""
    here = torch.empty(TOTAL, dtype=torch.uint8, device=device).random_()
    back = torch.empty_like(here)
    there = [torch.empty(page, dtype=torch.uint8, pin_memory=True) for _ in range(TOTAL // page)]
    leaving, coming = torch.cuda.Stream(device), torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    a = torch.randn(8192, 8192, dtype=torch.bfloat16, device=device)

    def out() -> None:
        with torch.cuda.stream(leaving):
            for one, part in zip(there, here.split(page), strict=True):  # type: ignore[no-untyped-call]
                one.copy_(part, non_blocking=True)

    def home() -> None:
        with torch.cuda.stream(coming):
            for one, part in zip(there, back.split(page), strict=True):  # type: ignore[no-untyped-call]
                part.copy_(one, non_blocking=True)

    def work() -> None:
        for _ in range(150):
            a @ a

    alone = taken((work,), device)
    found: list[dict[str, object]] = [{"page": page, "way": "products alone", "seconds": alone}]
    for name, ways in {"out": (out,), "back": (home,), "out and back": (out, home)}.items():
        seconds = taken(ways, device)
        beside = taken((*ways, work), device)
        rate = len(ways) * TOTAL / seconds / 1e9
        found.append({"page": page, "way": name, "seconds": seconds, "rate": rate, "beside products": beside})
    return found


def taken(ways: tuple[Callable[[], None], ...], device: torch.device) -> float:
    """Seconds until all are done, begun together on all GPUs."""
    seconds = []
    for _ in range(TURNS):
        dist.barrier()
        torch.cuda.synchronize(device)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        for way in ways:
            way()
        torch.cuda.synchronize(device)
        end.record()
        torch.cuda.synchronize(device)
        seconds.append(start.elapsed_time(end) / 1e3)
    slowest = torch.tensor(median(seconds), device=device)
    dist.all_reduce(slowest, dist.ReduceOp.MAX)
    return float(slowest)


if __name__ == "__main__":
    sys.exit(main())
