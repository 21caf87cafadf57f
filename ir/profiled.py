"""A measured step as a chart: the kernels in a trace that torch's profiler wrote."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fourfold.hardware.errors import UsageError
from fourfold.ir.chart import COMPUTE, Bar, Chart

KERNELS = ("kernel", "gpu_memcpy", "gpu_memset")
STEP = "ProfilerStep"
"""What `profiler.step()` names each step by."""
TALKS: Mapping[str, str] = {
    "allgather": "gather",
    "reducescatter": "reduce",
    "allreduce": "reduce",
    "reduce": "reduce",
    "alltoall": "exchange",
    "sendrecv": "send",
    "broadcast": "gather",
}
"""Kinds by what NCCL and RCCL name their kernels; the first that fits."""
FINENESS = 4000
"""Slices of a step in which neighbouring kernels become one bar: finer than any screen."""


def measured(paths: Sequence[str]) -> Chart:
    """The last step in each trace, on its rank, from its own start; the longest is the step's time.

    A step is what `profiler.step()` marked on the GPU, or the whole trace where nothing was. Raises UsageError for a
    file that is no such trace, holds no kernels of a GPU, or is of a rank already given.
    """
    bars: list[Bar] = []
    ranks: dict[int, str] = {}
    longest = 0.0
    for path in paths:
        found = _read(path)
        rank = int(found.get("distributedInfo", {}).get("rank", 0))
        if rank in ranks:
            raise UsageError(f"--measured {path} is of rank {rank}, as one before; give one trace a rank")
        ranks[rank] = f"rank {rank}"
        own, length = _step(found["traceEvents"], rank, path)
        bars += own
        longest = max(longest, length)
    return Chart("measured", tuple(bars), longest, dict(sorted(ranks.items())))


def _read(path: str) -> dict[str, Any]:
    """The JSON of a trace, packed or not."""
    try:
        data = Path(path).read_bytes()
        found = json.loads(gzip.decompress(data) if path.endswith(".gz") else data)
    except OSError as error:
        raise UsageError(f"--measured {path} cannot be read: {error.strerror or error}") from None
    except (ValueError, EOFError) as error:
        raise UsageError(f"--measured {path} is not a chrome trace: {error}") from None
    if not isinstance(found, dict) or not isinstance(found.get("traceEvents"), list):
        raise UsageError(f"--measured {path} is not a chrome trace; torch's profiler writes one: export_chrome_trace")
    return found


def _step(events: Sequence[Mapping[str, Any]], rank: int, path: str) -> tuple[list[Bar], float]:
    """The bars of the last step, and its seconds."""
    kernels = [event for event in events if event.get("cat") in KERNELS and "dur" in event]
    window = _window(events)
    if window is not None:
        kernels = [event for event in kernels if window[0] <= float(event["ts"]) < window[1]]
    if not kernels:
        raise UsageError(f"--measured {path} holds no kernels of a GPU; profile with ProfilerActivity.CUDA")
    begin = window[0] if window else min(float(event["ts"]) for event in kernels)
    bars = [_bar(event, rank, begin) for event in kernels]
    stop = max(bar.stop for bar in bars)
    length = max(stop, (window[1] - window[0]) / 1e6) if window else stop
    return list(_joined(bars, length / FINENESS)), length


def _window(events: Sequence[Mapping[str, Any]]) -> tuple[float, float] | None:
    """Start and end of the last marked step: as the GPU saw it, or else as the program did."""
    for seen in ("gpu_user_annotation", "user_annotation"):
        spans = [
            (float(event["ts"]), float(event["ts"]) + float(event["dur"]))
            for event in events
            if event.get("cat") == seen and str(event.get("name", "")).startswith(STEP) and "dur" in event
        ]
        if spans:
            return max(spans)
    return None


def _bar(event: Mapping[str, Any], rank: int, begin: float) -> Bar:
    name, start = str(event.get("name", "")), (float(event["ts"]) - begin) / 1e6
    kind = _kind(name, str(event["cat"]))
    stream = "nccl" if kind not in ("compute", "copy") else COMPUTE
    return Bar(rank, f"{stream} {event.get('tid', 0)}", name, start, start + float(event["dur"]) / 1e6, kind)


def _kind(name: str, sort: str) -> str:
    word = name.lower().replace("_", "")
    if "nccl" in word:
        return next((kind for part, kind in TALKS.items() if part in word), "exchange")
    return "compute" if sort == "kernel" else "copy"


def _joined(bars: Sequence[Bar], gap: float) -> Iterator[Bar]:
    """Bars of one kind on one stream with less than `gap` between them as one; none overlaps the one before."""
    last: dict[str, Bar] = {}
    for bar in sorted(bars, key=lambda one: one.start):
        before = last.get(bar.stream)
        if before is None:
            last[bar.stream] = bar
        elif bar.kind == before.kind and bar.start - before.stop < gap:
            last[bar.stream] = replace(before, stop=max(before.stop, bar.stop))
        else:
            yield before
            last[bar.stream] = replace(bar, start=max(bar.start, before.stop), stop=max(bar.stop, before.stop))
    yield from last.values()
