"""Seconds of a piece of work on one device, as the median of several runs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

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

    def seconds(self, work: Work) -> float:
        """The median time of `work`; a GPU runs it from a graph, without the host, where it can be captured."""
        if self.device.type == "cuda":
            run = _replayed(work) or _many(work)
            return self._median(lambda: (self.once(run) / QUEUED,))[0]
        return self._median(lambda: (self.once(work),))[0]

    def queued(self, work: Work) -> float:
        """The median device time of `work` launched by the host several times in a row."""
        return self._median(lambda: (self.once(_many(work)) / QUEUED,))[0]

    def both(self, forward: Callable[[], Tensor], backward: Callable[[Tensor], object]) -> tuple[float, float]:
        """The median times of a forward, and of the backward of what it gave."""

        def run() -> tuple[float, float]:
            made: list[Tensor] = []
            ahead = self.once(lambda: made.append(forward()))
            return ahead, self.once(lambda: backward(made[0]))

        ahead, back = self._median(run)
        return ahead, back

    def _median(self, run: Callable[[], tuple[float, ...]]) -> tuple[float, ...]:
        """Medians over as many runs as the budget allows, after one that warms up."""
        run()
        found: list[tuple[float, ...]] = []
        stop = time.perf_counter() + self.budget
        while len(found) < self.least or (len(found) < ROUNDS and time.perf_counter() < stop):
            found.append(run())
        return tuple(median(column) for column in zip(*found, strict=True))

    def once(self, work: Work) -> float:
        """The time of one run."""
        if self.device.type == "cuda":
            started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            started.record()
            work()
            ended.record()
            ended.synchronize()
            return float(started.elapsed_time(ended)) / 1e3
        begun = time.process_time()
        work()
        return (time.process_time() - begun) * self.share


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
