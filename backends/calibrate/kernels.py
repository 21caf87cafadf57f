"""Times the kernels that training spends its time in, on random data, while all ranks do the same."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from fourfold.backends.calibrate.ask import Ask
from fourfold.backends.calibrate.clock import Clock
from fourfold.backends.calibrate.fit import AttentionPoint, Point
from fourfold.backends.kernels.attention import attend
from fourfold.backends.kernels.documents import Documents

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}
FOOTPRINT = 48e6
"""Bytes that a round of kernels works on: more than a rank's share of any cache."""
MOST = 256
"""Kernels of one round at most."""
ROW = 256
"""Elements of the last dimension of elementwise operands."""
LAUNCHES, ROUNDS = 200, 15


@dataclass(frozen=True, slots=True)
class Kernels:
    """The timings of one rank. `rates`: FLOP/s of a product in other dtypes; `launch`: seconds of a tiny eager op.

    On a GPU that is the host's time for it, on a CPU what it takes beyond its kernel.
    """

    products: dict[str, tuple[Point, ...]]
    streams: tuple[Point, ...]
    specials: tuple[Point, ...]
    norms: tuple[Point, ...]
    norms_backward: tuple[Point, ...]
    attention: tuple[AttentionPoint, ...]
    attention_backward: tuple[AttentionPoint, ...]
    rates: dict[str, float]
    launch: float


def kernels(ask: Ask, rank: int) -> Kernels:
    """The timings of this rank."""
    device = ask.place(rank)
    torch.manual_seed(rank)
    clock = ask.clock(device)
    streams = [_stream(clock, size) for size in ask.streams]
    norms = [_norm(clock, size) for size in ask.streams]
    mixed = [_attention(clock, ask.dtypes[0], *shape) for shape in ask.attentions]
    return Kernels(
        products={dtype: tuple(_products(clock, ask, dtype)) for dtype in ask.dtypes},
        streams=tuple(streams),
        specials=tuple(_special(clock, size) for size in ask.streams),
        norms=tuple(forward for forward, _ in norms),
        norms_backward=tuple(backward for _, backward in norms),
        attention=tuple(forward for forward, _ in mixed),
        attention_backward=tuple(backward for _, backward in mixed),
        rates={} if ask.on_gpu else {dtype: _rate(clock, dtype) for dtype in ("fp64", "bf16")},
        launch=_launch(device) if ask.on_gpu else _node(clock, streams[0].seconds),
    )


def _products(clock: Clock, ask: Ask, dtype: str) -> Iterator[Point]:
    """The three products of each linear layer: forward, the gradient of its input, that of its weight."""
    kind = DTYPES[dtype]
    for tokens, outputs, inputs in ask.products if dtype == ask.dtypes[0] else ask.products[:6]:
        shapes = ((tokens, inputs), (outputs, inputs), (tokens, outputs))
        moved = float(kind.itemsize * sum(rows * columns for rows, columns in shapes))
        sets = [[_random(clock, shape, kind) for shape in shapes] for _ in range(min(12, _several(3 * moved)))]
        for pair in ([(x, w.t()) for x, w, _ in sets], [(g, w) for _, w, g in sets], [(g.t(), x) for x, _, g in sets]):
            seconds = clock.seconds(partial(_each, pair)) / len(sets)
            yield Point(2.0 * tokens * outputs * inputs, moved, seconds)


def _each(pairs: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    return [a @ b for a, b in pairs]


def _several(moved: float) -> int:
    """How many sets of operands are worked on in turn, so that none waits in a cache as no model's would."""
    return int(min(MOST, max(2, FOOTPRINT / moved)))


def _rate(clock: Clock, dtype: str) -> float:
    """FLOP/s of one product; small, as a dtype without instructions of its own is a hundred times slower."""
    size = 128
    a, b = (_random(clock, (size, size), DTYPES[dtype]) for _ in range(2))
    return 2.0 * size**3 / clock.seconds(lambda: a @ b)


def _stream(clock: Clock, size: int) -> Point:
    """A plain elementwise kernel that reads two operands and writes one."""
    passes = 4.0 * size
    if clock.device.type == "cuda":
        a, b, out = (_random(clock, (size // ROW, ROW)) for _ in range(3))
        return Point(0.0, 3 * passes, clock.seconds(lambda: torch.add(a, b, out=out)))
    others = [_random(clock, (size // ROW, ROW)) for _ in range(_several(3 * passes))]
    forward, backward = _chain(clock, size, [partial(_scaled, a) for a in others])
    return Point(0.0, 3 * passes, (forward + backward) / 3)  # a product and a sum forward, a product backward


def _scaled(a: Tensor, y: Tensor) -> Tensor:
    return y * a + a


def _special(clock: Clock, size: int) -> Point:
    """A kernel that evaluates an exponential for each element."""
    passes = 4.0 * size
    if clock.device.type == "cuda":
        x = _random(clock, (size // ROW, ROW))
        return Point(0.0, 2 * passes, clock.seconds(lambda: F.silu(x)))
    forward, backward = _chain(clock, size, [F.silu] * _several(3 * passes))
    return Point(0.0, 2.5 * passes, (forward + backward) / 2)  # two passes forward, three backward


def _norm(clock: Clock, size: int) -> tuple[Point, Point]:
    """A normalisation over rows, forward (two passes) and backward (three)."""
    passes, weight = 4.0 * size, _random(clock, (ROW,)).requires_grad_()
    norm = partial(F.rms_norm, normalized_shape=(ROW,), weight=weight, eps=1e-5)
    forward, backward = _chain(clock, size, [norm] * min(16, _several(3 * passes)))
    return Point(0.0, 2 * passes, forward), Point(0.0, 3 * passes, backward)


def _chain(clock: Clock, size: int, ops: Sequence[Callable[[Tensor], Tensor]]) -> tuple[float, float]:
    """Seconds of one op of a chain, forward and backward: what each keeps for its backward has left the caches."""
    x, g = (_random(clock, (size // ROW, ROW)) for _ in range(2))
    x.requires_grad_()

    def forward() -> Tensor:
        y = x
        for op in ops:
            y = op(y)
        return y

    ahead, back = clock.both(forward, lambda y: torch.autograd.grad(y, x, g))
    return ahead / len(ops), back / len(ops)


def _attention(
    clock: Clock, dtype: str, documents: int, length: int, heads: int, width: int
) -> tuple[AttentionPoint, AttentionPoint]:
    """Causal attention over equal documents by the kernel that runs would choose, forward and backward.

    FLOPs are those of the forward for both. Four query heads share a key/value head, where there are that many.
    """
    tokens, kind = documents * length, DTYPES[dtype]
    shapes = ((tokens, heads, width), *((tokens, max(1, heads // 4), width),) * 2)
    q, k, v = (_random(clock, shape, kind).requires_grad_() for shape in shapes)
    packed = Documents.of((length,) * documents, clock.device)
    flops = 4.0 * heads * width * documents * length * (length + 1) / 2

    def forward() -> Tensor:
        return attend(q, k, v, packed, scale=width**-0.5, causal=True)

    g = _random(clock, (tokens, heads, width), kind)
    seconds, back = clock.both(forward, lambda out: torch.autograd.grad(out, (q, k, v), g))
    return AttentionPoint(flops, length, width, seconds), AttentionPoint(flops, length, width, back)


def _node(clock: Clock, overhead: float) -> float:
    """What one op costs forward, and again backward, beyond the overheads of its kernels timed in a row.

    In a model each op is another one, and what the processor knew of it is gone: so caches are swept in between.
    """
    x, a, b, g = (_random(clock, (8, ROW)) for _ in range(4))
    x.requires_grad_()
    swept = torch.zeros(int(FOOTPRINT) // 8)

    def forward() -> Tensor:
        y = x * a
        z = torch.cat((-y.narrow(1, ROW // 2, ROW // 2), y.narrow(1, 0, ROW // 2)), 1) * b + y
        return F.silu(z.view(8, 2, -1).transpose(0, 1)).transpose(0, 1).reshape(8, ROW) + x

    found = []
    for _ in range(ROUNDS):
        swept.add_(1.0)
        found.append(clock.once(lambda: torch.autograd.grad(forward(), x, g)))
    nodes, kernels = 13, 18
    return max(0.0, median(found) - kernels * overhead) / (2 * nodes)


def _launch(device: torch.device) -> float:
    """Host seconds of one small eager kernel, the device being idle."""
    x = torch.zeros(ROW, device=device)
    for _ in range(2):
        torch.cuda.synchronize(device)
        started = time.perf_counter()
        for _ in range(LAUNCHES):
            x + x
        seconds = time.perf_counter() - started
    return seconds / LAUNCHES


def _random(clock: Clock, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Random data: products of zeros draw less power and read too fast."""
    return torch.randn(shape, device=clock.device, dtype=torch.float32).to(dtype)
