"""What every benchmark of a training step shares: the model's sizes and FLOPs, the clock, one row a variant."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from fourfold.compiler.models.llama import LlamaConfig

PEAK = 989.4e12
"""Dense bf16 FLOPs per second of an H200, by its datasheet."""

LLAMA_8B = LlamaConfig(vocabulary=128256, width=4096, layers=32, heads=32, kv_heads=8, feed_forward=14336)
PARITY = LlamaConfig(vocabulary=8192, width=1024, layers=4, heads=16, kv_heads=4, feed_forward=4096)
TINY = LlamaConfig(vocabulary=512, width=64, layers=2, heads=4, kv_heads=2, feed_forward=128)


@dataclass(frozen=True, slots=True)
class Shape:
    """A model, the length of its sequences, and how long a variant is measured."""

    config: LlamaConfig
    length: int
    device: torch.device
    warmup: int = 2
    steps: int = 5

    @property
    def real(self) -> bool:
        """On a GPU, in bf16 and compiled; else a toy in float32, to see that the programs run."""
        return self.device.type == "cuda"

    @property
    def flops(self) -> float:
        """Model FLOPs of one token: six a weight that multiplies, and attention over half of the keys."""
        c, head = self.config, self.config.width // self.config.heads
        block = c.width * (2 * c.width + 2 * c.kv_heads * head + 3 * c.feed_forward)
        weights = c.layers * block + c.vocabulary * c.width
        return 6.0 * weights + 6.0 * self.length * c.width * c.layers


@dataclass(frozen=True, slots=True)
class Row:
    """One variant. Seconds of the median step, bytes of one rank at its fullest; `error` says why there are none.

    first: seconds of the first step, compilation included; parts: seconds of forward, backward and optimizer;
    predicted_*: the planner's. `tokens` are those of one step on all ranks.
    """

    program: str
    name: str
    tokens: int = 0
    ranks: int = 1
    seconds: float = 0.0
    spread: float = 0.0
    per_rank: float = 0.0
    mfu: float = 0.0
    allocated: int = 0
    reserved: int = 0
    first: float = 0.0
    setup: float = 0.0
    loss: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)
    predicted_seconds: float | None = None
    predicted_memory: tuple[float, float] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    error: str = ""

    def plain(self) -> dict[str, Any]:
        """For a line of JSON."""
        return asdict(self)


class Clock:
    """Marks moments on the device without waiting for it, and tells the seconds between them."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.marks: list[tuple[str, Any]] = []

    def mark(self, name: str) -> None:
        """The device reaches this once it has done all that was launched before."""
        if self.device.type != "cuda":
            self.marks.append((name, time.perf_counter()))
            return
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        self.marks.append((name, event))

    def spans(self) -> list[tuple[str, float]]:
        """(name of the mark it begins with, seconds) of each span."""
        finish(self.device)
        pairs = zip(self.marks, self.marks[1:], strict=False)
        return [(name, _between(a, b)) for (name, a), (_, b) in pairs]


def _between(start: Any, end: Any) -> float:
    return float(end - start) if isinstance(start, float) else float(start.elapsed_time(end)) / 1e3


def finish(device: torch.device) -> None:
    """Waits for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def forget(device: torch.device) -> None:
    """Gives back what the last variant held, compiled code included; what lies in the caches on disk stays."""
    torch._dynamo.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def measured(row: Row, step: Callable[[int, Clock], float | torch.Tensor], shape: Shape) -> Row:
    """The row with its figures, from steps 0, 1, ...; `step` marks its own parts and returns the loss.

    Peaks are those of the measured steps, after a warm-up that also compiles. Long steps are repeated less.
    """
    count = min(shape.steps, max(3, 10 * shape.length * row.ranks // row.tokens))
    started = time.perf_counter()
    step(0, Clock(shape.device))
    finish(shape.device)
    first = time.perf_counter() - started
    for number in range(1, shape.warmup):
        step(number, Clock(shape.device))
    if shape.real:
        finish(shape.device)
        torch.cuda.reset_peak_memory_stats(shape.device)
    clock = Clock(shape.device)
    loss: float | torch.Tensor = 0.0
    for number in range(shape.warmup, shape.warmup + count):
        clock.mark("forward")
        loss = step(number, clock)
    clock.mark("end")
    return _filled(replace(row, first=first, loss=float(loss)), clock.spans(), shape)


def _filled(row: Row, spans: Sequence[tuple[str, float]], shape: Shape) -> Row:
    steps: list[float] = []
    parts: dict[str, list[float]] = {}
    for name, seconds in spans:
        if name == "forward":
            steps.append(0.0)
        steps[-1] += seconds
        parts.setdefault(name, []).append(seconds)
    seconds = statistics.median(steps)
    rate = row.tokens / seconds / row.ranks
    return replace(
        row,
        seconds=seconds,
        spread=max(steps) - min(steps),
        per_rank=rate,
        mfu=rate * shape.flops / PEAK,
        allocated=torch.cuda.max_memory_allocated(shape.device) if shape.real else 0,
        reserved=torch.cuda.max_memory_reserved(shape.device) if shape.real else 0,
        parts={name: statistics.median(found) for name, found in parts.items()},
    )


def batches(shape: Shape, count: int) -> tuple[torch.Tensor, ...]:
    """Token numbers [count, length + 1] for each step on the host: the global batch, the same on every rank."""
    found = []
    for step in range(shape.warmup + shape.steps):
        generator = torch.Generator().manual_seed(step)
        found.append(torch.randint(0, shape.config.vocabulary, (count, shape.length + 1), generator=generator))
    return tuple(found)


def table(rows: Sequence[Row]) -> str:
    """The rows as text, a line each."""
    figures = f"{'s/step':>8} {'tok/s/GPU':>9} {'MFU %':>6} {'peak GB':>8} {'predicted s, GB':>18}"
    head = f"{'program':8} {'variant':44} {figures}"
    return "\n".join((head, *(_line(row) for row in rows)))


def _line(row: Row) -> str:
    start = f"{row.program:8} {row.name:44}"
    if row.error:
        return f"{start} {row.error.splitlines()[0][:60]}"
    guess = ""
    if row.predicted_seconds is not None and row.predicted_memory is not None:
        low, high = (b / 1e9 for b in row.predicted_memory)
        guess = f"{row.predicted_seconds:.3f}, {low:.0f}-{high:.0f}"
    figures = f"{row.seconds:8.4f} {row.per_rank:9.0f} {100 * row.mfu:6.1f} {row.allocated / 1e9:8.1f}"
    return f"{start} {figures} {guess:>18}"
