"""From timings to the few numbers the cost model reads: fits of relative error, steady with few points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from fourfold.hardware.machine import AttentionFit, KernelFit

Numbers = NDArray[np.float64]

SHAPES = (1.0, 1.2, 1.4, 1.7, 2.0, 3.0)
SHARES = (0.0, 0.25, 0.5, 0.75, 0.95)
HALVES = (0.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0)
MOST = 1.3
"""A share of the peak or of the bandwidth that no kernel passes; where memory never binds, the fit would say any."""
LEAST = 1e-3


@dataclass(frozen=True, slots=True)
class Point:
    """One timing: seconds of a kernel of `flops` FLOPs that moves `moved` bytes."""

    flops: float
    moved: float
    seconds: float


@dataclass(frozen=True, slots=True)
class AttentionPoint:
    """One timing: seconds of attention of `flops` FLOPs over documents of `length` tokens, heads of `width`."""

    flops: float
    length: int
    width: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Quality:
    """How well a fit tells its own points: relative errors, mean and 95th percentile."""

    points: int
    mean: float
    p95: float


@dataclass(frozen=True, slots=True)
class Stream:
    """t = overhead + min(Q, cached) / hot + max(0, Q - cached) / cold: rates in bytes per second."""

    overhead: float
    cached: float
    hot: float
    cold: float

    def seconds(self, moved: float) -> float:
        """The time of a kernel that moves `moved` bytes."""
        return self.overhead + min(moved, self.cached) / self.hot + max(0.0, moved - self.cached) / self.cold


def stream(points: Sequence[Point]) -> Stream:
    """Overhead and rates of elementwise kernels: the first `cached` bytes stay in a cache, and what spills is slow.

    `cached` by search among the sizes timed, the rest by relative least squares.
    """
    size, seconds = (np.array([getattr(p, name) for p in points]) for name in ("moved", "seconds"))
    # Where the sizes are too alike to tell a rate, no rate is better known than the fastest seen.
    fastest = float((size / seconds).max())
    best, least = Stream(0.0, 0.0, fastest, fastest), np.inf
    for cached in (0.0, *sorted(size)[1:-1]):
        columns = (np.ones_like(size), np.minimum(size, cached), np.maximum(size - cached, 0.0))
        overhead, hot, cold = _steady(np.stack(columns, 1), seconds)
        fit = Stream(overhead, float(cached), 1 / hot if hot else fastest, 1 / cold if cold else fastest)
        error = float(np.mean([abs(np.log(fit.seconds(s) / t)) for s, t in zip(size, seconds, strict=True)]))
        if error < 0.9 * least and fit.cold <= fit.hot:
            best, least = fit, error
    return best


def stream_quality(fit: Stream, points: Sequence[Point]) -> Quality:
    """The relative errors of a fit on points."""
    return _quality(np.array([fit.seconds(p.moved) for p in points]), np.array([p.seconds for p in points]))


def matmul(points: Sequence[Point], *, peak: float, bandwidth: float) -> KernelFit:
    """The rounded roofline t = t0 + ((F / (e_c P))^p + (Q / (e_m B))^p)^(1/p) with the least mean log error.

    p and t0 by search (t0 as a share of the fastest point), then e_c and e_m by least squares, linear in the powers.
    """
    flops, moved, seconds = (np.array([getattr(p, n) for p in points]) for n in ("flops", "moved", "seconds"))
    best, least = None, np.inf
    for shape, share in product(SHAPES, SHARES):
        overhead = share * float(seconds.min())
        rest = (seconds - overhead) ** shape
        compute, memory = _steady(np.stack(((flops / peak) ** shape, (moved / bandwidth) ** shape), 1), rest)
        fit = KernelFit(_factor(compute, shape), _factor(memory, shape), shape, overhead)
        error = float(np.abs(np.log(_roofline(fit, flops / peak, moved / bandwidth) / seconds)).mean())
        if error < least:
            best, least = fit, error
    assert best is not None
    return best


def matmul_quality(fit: KernelFit, points: Sequence[Point], *, peak: float, bandwidth: float) -> Quality:
    """The relative errors of a fit on points."""
    flops, moved, seconds = (np.array([getattr(p, n) for p in points]) for n in ("flops", "moved", "seconds"))
    return _quality(_roofline(fit, flops / peak, moved / bandwidth), seconds)


def attention(points: Sequence[AttentionPoint], *, peak: float) -> AttentionFit:
    """t = t0 + F / (ceiling P) (1 + half_length / s) (1 + half_width / d), the last term where several d were timed.

    The halves by search, t0 and the ceiling by relative least squares. On a CPU the exponentials of a score cost as
    much as many FLOPs of a product, which is why small heads are slow.
    """
    flops, length, width, seconds = _columns(points)
    best, least = None, np.inf
    widths = HALVES[:8] if len(set(width)) > 1 else (0.0,)
    for half, narrow in product(HALVES, widths):
        ideal = flops / peak * (1 + half / length) * (1 + narrow / width)
        overhead, slope = _steady(np.stack((np.ones_like(ideal), ideal), 1), seconds)
        if slope <= 0:
            continue
        error = float(np.abs(np.log((overhead + slope * ideal) / seconds)).mean())
        if error < least - 1e-9:
            best, least = AttentionFit(_share(1.0 / slope), half, overhead, narrow), error
    return best or AttentionFit(_share(float((flops / seconds).max()) / peak), 0.0, 0.0)


def attention_quality(fit: AttentionFit, points: Sequence[AttentionPoint], *, peak: float) -> Quality:
    """The relative errors of a fit on points."""
    flops, length, width, seconds = _columns(points)
    share = fit.ceiling * length / (length + fit.half_length) * width / (width + fit.half_width)
    return _quality(fit.overhead + flops / (share * peak), seconds)


def scaled(points: Sequence[AttentionPoint], factor: float) -> tuple[AttentionPoint, ...]:
    """The same timings of `factor` times the work."""
    return tuple(replace(point, flops=point.flops * factor) for point in points)


def _columns(points: Sequence[AttentionPoint]) -> tuple[Numbers, Numbers, Numbers, Numbers]:
    table = np.array([(p.flops, p.length, p.width, p.seconds) for p in points], dtype=np.float64)
    return table[:, 0], table[:, 1], table[:, 2], table[:, 3]


def _steady(terms: Numbers, seconds: Numbers) -> tuple[float, ...]:
    """Non-negative weights of least relative error; points off by more than three times the usual are left out."""
    kept = np.ones(len(seconds), dtype=bool)
    weights: tuple[float, ...] = (0.0,) * terms.shape[1]
    for _ in range(3):
        weights = _positive(terms[kept] / seconds[kept, None])
        errors = np.abs(terms @ np.array(weights) / seconds - 1)
        near = errors <= max(3 * float(np.median(errors)), 0.1)
        if near.sum() <= max(terms.shape[1], len(seconds) // 2):
            break
        kept = near
    return weights


def _positive(terms: Numbers) -> tuple[float, ...]:
    """Non-negative weights that bring the sum of the weighted columns closest to 1 over all rows.

    The least squares of every choice of columns that are not zero, and the best of those without a negative weight.
    """
    count = terms.shape[1]
    scale = np.where(terms.max(axis=0) > 0, terms.max(axis=0), 1.0)
    best, least = np.zeros(count), np.inf
    for chosen in product((False, True), repeat=count):
        columns = np.flatnonzero(chosen)
        if not len(columns):
            continue
        found, *_ = np.linalg.lstsq(terms[:, columns] / scale[columns], np.ones(len(terms)), rcond=None)
        left = float(((terms[:, columns] / scale[columns] @ found - 1) ** 2).sum())
        if (found >= 0).all() and left < least:
            best, least = np.zeros(count), left
            best[columns] = found / scale[columns]
    return tuple(float(weight) for weight in best)


def _roofline(fit: KernelFit, compute: Numbers, memory: Numbers) -> Numbers:
    powers = (compute / fit.compute) ** fit.shape + (memory / fit.memory) ** fit.shape
    found: Numbers = fit.overhead + powers ** (1 / fit.shape)
    return found


def _factor(weight: float, shape: float) -> float:
    """The efficiency behind a weight: w = e^-p."""
    return _share(weight ** (-1 / shape) if weight > 0 else MOST)


def _share(value: float) -> float:
    return min(max(value, LEAST), MOST)


def _quality(told: Numbers, seconds: Numbers) -> Quality:
    errors = np.abs(told / seconds - 1)
    return Quality(len(errors), float(errors.mean()), float(np.quantile(errors, 0.95)))
