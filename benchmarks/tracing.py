"""One step under torch's profiler, summed up: which kernels take the time, and what communication nothing hides."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

Interval = tuple[float, float]

OURS = ("key_kernel", "query_kernel", "forward_kernel", "delta_kernel", "merge_kernel")
PACKED = ("catarray", "chunk_cat", "split_with_sizes", "pack_kernel")

KINDS: Mapping[str, Sequence[str]] = {
    "communication": ("nccl",),
    "attention": ("cudnn", "fmha", "flash", *OURS),
    "products": ("nvjet", "gemm", "cutlass"),
    "optimizer": ("fusedoptimizer",),
    "copies": ("memcpy", "memset", "copy_kernel", "copyfunctor", "fillfunctor", *PACKED),
}
"""What a kernel is for, by words of its name; the first that fits."""


def traced(step: Callable[[], object], device: torch.device, *, warm: bool = False) -> dict[str, Any]:
    """The summary of one call of `step`, run once before unless it is `warm`. Seconds; no kernels without a GPU."""
    if not warm:
        step()
    if device.type == "cuda":
        # What is still running would fall into the trace.
        torch.cuda.synchronize(device)
    with profile(activities=[ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU]) as found:
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        found.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    return summary([e for e in events if e.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")])


def summary(kernels: Sequence[Mapping[str, Any]], top: int = 25) -> dict[str, Any]:
    """Seconds of the whole, of computation, of communication, of communication alone, of nothing; the longest kernels.

    exposed: while communication runs and no computation does; exposed_share: of the whole; kinds: seconds of kernels by
    what they are for.

    kernels: events of a chrome trace, `ts` and `dur` in microseconds.
    """
    if not kernels:
        return {"kernels": []}
    spans = [(e["name"], (e["ts"] / 1e6, (e["ts"] + e["dur"]) / 1e6)) for e in kernels]
    talk = union(span for name, span in spans if _talks(name))
    work = union(span for name, span in spans if not _talks(name))
    both = union((*talk, *work))
    whole = max(end for _, end in both) - min(start for start, _ in both)
    sums: dict[str, list[float]] = defaultdict(list)
    for name, (start, end) in spans:
        sums[name].append(end - start)
    longest = sorted(sums.items(), key=lambda item: -sum(item[1]))[:top]
    return {
        "seconds": whole,
        "computation": length(work),
        "communication": length(talk),
        "exposed": length(both) - length(work),
        "idle": whole - length(both),
        "exposed_share": (length(both) - length(work)) / whole,
        "kinds": by_kind(sums),
        "kernels": [{"name": name[:160], "calls": len(v), "seconds": sum(v)} for name, v in longest],
    }


def by_kind(sums: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Seconds of kernels of each kind, by their names; what none of KINDS names is elementwise."""
    found: dict[str, float] = defaultdict(float)
    for name, seconds in sums.items():
        low = name.lower()
        kind = next((kind for kind, words in KINDS.items() if any(word in low for word in words)), "elementwise")
        found[kind] += sum(seconds)
    return dict(found)


def union(spans: Iterable[Interval]) -> list[Interval]:
    """The spans with overlaps joined, in order."""
    found: list[Interval] = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


def length(spans: Iterable[Interval]) -> float:
    """The sum of disjoint spans."""
    return sum(end - start for start, end in spans)


def _talks(name: str) -> bool:
    return "nccl" in name.lower()
