"""How long this rank takes for the same work as others: one region of one block, timed in every micro-step.

Regions wait for no other rank of the pool, so that their seconds a token tell a slow device from a slow neighbour.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fourfold.backends.stage.runner import RegionFunction, Runner
from fourfold.ir.graph import Graph


@dataclass(slots=True)
class Pace:
    """Spans since they were last asked for: tokens, and the moments before and after, by the device's own clock."""

    device: torch.device
    spans: list[tuple[int, Any, Any]] = field(default_factory=list)

    def around(self, function: RegionFunction) -> RegionFunction:
        """The function, timed; its first argument is [1, tokens, ..]."""

        def timed(*tensors: Tensor) -> tuple[Tensor, ...]:
            start = self._now()
            found = function(*tensors)
            self.spans.append((tensors[0].shape[1], start, self._now()))
            return found

        return timed

    def taken(self) -> tuple[float, int]:
        """Seconds and tokens of all spans; those of a step before, which have long passed, hold up no one."""
        spans, self.spans = self.spans, []
        return sum(self._between(start, end) for _, start, end in spans), sum(tokens for tokens, _, _ in spans)

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _between(self, start: Any, end: Any) -> float:
        if self.device.type != "cuda":
            return float(end - start)
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3


def timed(runners: Mapping[str, Runner], graph: Graph, pace: Pace) -> Mapping[str, Runner]:
    """The runner of the block that is called most, its first region timed."""
    ((name, _),) = Counter(call.block for call in graph.calls).most_common(1)
    functions = [None if f is None else pace.around(f) for f in runners[name].functions[:1]]
    return {name: replace(runners[name], functions=(*functions, *runners[name].functions[1:]))}
