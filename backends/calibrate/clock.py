"""Seconds of a piece of work on one device, as the median of several runs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

Work = Callable[[], object]

ROUNDS = 40
"""Runs after which a median is steady enough, however much time is left."""
QUEUED = 10
"""Launches between two events of a GPU, so that short kernels do not wait for the host."""


@dataclass(frozen=True, slots=True)
class Clock:
    """Times work on `device`: at least `least` runs, more while `budget` seconds last.

    On a CPU it counts processor time times `share`, the processes that take turns on one core: what the wall shows
    when all of them compute, without what strangers take. On a GPU it counts device time.
    """

    device: torch.device
    share: float = 1.0
    least: int = 3
    budget: float = 0.05

    def seconds(self, work: Work, *, replay: bool = True) -> float:
        """The median time of `work`; `replay` allows a GPU to run it from a graph, without the host."""
        if self.device.type == "cuda":
            return self._on_gpu(_replayed(work) if replay else None, work)
        work()
        found: list[float] = []
        stop = time.perf_counter() + self.budget
        while len(found) < self.least or (len(found) < ROUNDS and time.perf_counter() < stop):
            started = time.process_time()
            work()
            found.append(time.process_time() - started)
        return median(found) * self.share

    def _on_gpu(self, queued: Work | None, work: Work) -> float:
        run = queued or _many(work)
        run()
        found: list[float] = []
        stop = time.perf_counter() + self.budget
        while len(found) < self.least or (len(found) < ROUNDS and time.perf_counter() < stop):
            started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            started.record()
            run()
            ended.record()
            ended.synchronize()
            found.append(started.elapsed_time(ended) / 1e3 / QUEUED)
        return median(found)


def cores() -> int:
    """Processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _many(work: Work) -> Work:
    def run() -> None:
        for _ in range(QUEUED):
            work()

    return run


def _replayed(work: Work) -> Work | None:
    """The launches of `_many` as one graph; None where this work cannot be captured."""
    run = _many(work)
    try:
        with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
            work()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
    except RuntimeError:
        return None
    return graph.replay
