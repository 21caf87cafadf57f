"""What all ranks measured together, one figure for each thing: the middle rank on a CPU, the slowest of GPUs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median

from fourfold.backends.calibrate import fit
from fourfold.backends.calibrate.collectives import Traffic
from fourfold.backends.calibrate.fit import AttentionPoint, Point, Quality, Stream
from fourfold.backends.calibrate.kernels import Kernels
from fourfold.costmodel.collective import bus_factor
from fourfold.costmodel.kernel import ATTENTION_BACKWARD
from fourfold.hardware.machine import Anchors, AttentionFit, Chore, KernelFit, Overlap

Merge = Callable[[Sequence[float]], float]


@dataclass(frozen=True, slots=True)
class Rates:
    """What fits are relative to: FLOP/s by dtype and bytes per second. On a CPU they are measured, too."""

    peak: Mapping[str, float]
    bandwidth: float


@dataclass(frozen=True, slots=True)
class Found:
    """The fits, each with how well it tells its points. There are no `chores` where the device runs on meanwhile."""

    rates: Rates
    products: Mapping[str, tuple[KernelFit, Quality]]
    stream: tuple[Stream, Quality]
    special: tuple[Stream, Quality]
    norm: tuple[Stream, Quality]
    norm_backward: tuple[Stream, Quality]
    attention: tuple[AttentionFit, Quality]
    attention_backward: tuple[AttentionFit, Quality]
    launch: float
    anchors: tuple[Anchors, ...]
    overlap: Overlap
    chores: Mapping[str, Chore]


def found(
    kernels: Sequence[Kernels],
    traffic: Sequence[Traffic],
    chores: Sequence[Mapping[str, Chore]],
    *,
    rates: Rates | None,
    share: float | None,
) -> Found:
    """The fits to what the ranks measured. `rates` are those of the device's profile; None takes the best measured.

    share: processes that take turns on one core, if collectives shall be told by processor time, which the programs of
    strangers do not change; None to tell them by the wall.
    """
    merge: Merge = median if rates is None else max
    products = {dtype: _merged([k.products[dtype] for k in kernels], merge) for dtype in kernels[0].products}
    streams = _merged([k.streams for k in kernels], merge)
    known = rates or _measured(products, streams, kernels)
    first = next(iter(products))
    mixed = [
        _merged_attention([getattr(k, name) for k in kernels], merge) for name in ("attention", "attention_backward")
    ]
    return Found(
        rates=known,
        products={dtype: _product(points, known, dtype) for dtype, points in products.items()},
        stream=_stream(streams),
        special=_stream(_merged([k.specials for k in kernels], merge)),
        norm=_stream(_merged([k.norms for k in kernels], merge)),
        norm_backward=_stream(_merged([k.norms_backward for k in kernels], merge)),
        attention=_attention(mixed[0], known.peak[first]),
        attention_backward=_attention(fit.scaled(mixed[1], ATTENTION_BACKWARD), known.peak[first]),
        launch=merge([k.launch for k in kernels]),
        anchors=_anchors([t.anchors for t in traffic], merge, 1.0)
        if share is None
        else _anchors([t.worked for t in traffic], mean, share),
        overlap=traffic[0].overlap,
        chores={name: _chore([each[name] for each in chores]) for name in chores[0]} if chores else {},
    )


def bus_bandwidth(anchors: Sequence[Anchors]) -> float:
    """Bytes per second one rank puts on the wire in the largest all-reduce of the largest group."""
    (size, seconds), ranks = max((a.size, a.points[-1]) for a in anchors if a.op == "all_reduce")[::-1]
    return bus_factor("all_reduce", ranks) * size / seconds


def _measured(products: Mapping[str, Sequence[Point]], streams: Sequence[Point], kernels: Sequence[Kernels]) -> Rates:
    """The best product of each dtype, and the rate of elementwise kernels whose operands lie in a cache."""
    best = {dtype: max(p.flops / p.seconds for p in points) for dtype, points in products.items()}
    others = {dtype: median(k.rates[dtype] for k in kernels) for dtype in kernels[0].rates}
    return Rates(best | others | {"fp16": others["bf16"]}, fit.stream(streams).hot)


def _product(points: Sequence[Point], rates: Rates, dtype: str) -> tuple[KernelFit, Quality]:
    scale = {"peak": rates.peak[dtype], "bandwidth": rates.bandwidth}
    found = fit.matmul(points, **scale)
    return found, fit.matmul_quality(found, points, **scale)


def _stream(points: Sequence[Point]) -> tuple[Stream, Quality]:
    found = fit.stream(points)
    return found, fit.stream_quality(found, points)


def _attention(points: Sequence[AttentionPoint], peak: float) -> tuple[AttentionFit, Quality]:
    found = fit.attention(points, peak=peak)
    return found, fit.attention_quality(found, points, peak=peak)


def _merged(ranks: Sequence[Sequence[Point]], merge: Merge) -> tuple[Point, ...]:
    """The points of all ranks, which timed the same kernels in the same order."""
    columns = zip(*ranks, strict=True)
    return tuple(Point(c[0].flops, c[0].moved, merge([p.seconds for p in c])) for c in columns)


def _merged_attention(ranks: Sequence[Sequence[AttentionPoint]], merge: Merge) -> tuple[AttentionPoint, ...]:
    columns = zip(*ranks, strict=True)
    return tuple(AttentionPoint(c[0].flops, c[0].length, c[0].width, merge([p.seconds for p in c])) for c in columns)


def _anchors(ranks: Sequence[Sequence[Anchors]], merge: Merge, share: float) -> tuple[Anchors, ...]:
    """Times that never fall as messages grow: where they do, it is noise of the measurement."""
    merged = []
    for column in zip(*ranks, strict=True):
        times = [
            share * merge(seconds) for seconds in zip(*([t for _, t in one.points] for one in column), strict=True)
        ]
        sizes = [size for size, _ in column[0].points]
        rising = [max(times[: i + 1]) for i in range(len(times))]
        merged.append(Anchors(column[0].op, column[0].size, 1, tuple(zip(sizes, rising, strict=True))))
    return tuple(merged)


def _chore(ranks: Sequence[Chore]) -> Chore:
    overhead, rate, idle = (median(getattr(one, name) for one in ranks) for name in ("overhead", "rate", "idle"))
    return Chore(overhead, rate, idle)
