"""Seconds one kernel takes on one device: matrix products, elementwise regions, norms, attention.

Every time has the same shape, t = t0 + work / reachable rate. The factors come from the device's
profile or its calibration; no rate is ever borrowed from another device or another dtype.
"""

from __future__ import annotations

from fourfold.hardware.errors import InfeasibleError
from fourfold.hardware.machine import AttentionFit, Device, KernelFit

# Backward recomputes the scores once (1 product) and forms dQ, dK, dV and dP (4), against 2 forward.
ATTENTION_BACKWARD = 2.5


def matmul_time(flops: float, moved: float, dtype: str, device: Device) -> float:
    """Seconds of one matrix product of `flops` FLOPs that moves `moved` bytes (A, B and C once each).

    t = t0 + ((F / (e_c P))^p + (Q / (e_m B))^p)^(1/p), a roofline with a rounded corner: it never
    promises the peak to a product that is half bound by memory. Nothing to do takes no time.
    Fitted on 80 364 timings of H100, A100 and A40 it errs by 6 to 10 % on unseen models' shapes.
    Raises InfeasibleError when the device has no unit for `dtype`.
    """
    assert flops >= 0 and moved >= 0, (flops, moved)
    if flops == 0 and moved == 0:
        return 0.0
    peak = peak_rate(dtype, device)
    fit = matmul_fit(dtype, device)
    compute = flops / (fit.compute * peak)
    memory = moved / (fit.memory * device.bandwidth)
    return fit.overhead + _rounded_maximum(compute, memory, fit.shape)


def stream_time(moved: float, device: Device) -> float:
    """Seconds of a fused elementwise region or a copy that reads and writes `moved` bytes: t0 + Q / (e B).

    Where a calibration knows it, the first bytes go at the rate of the cache that holds them; else small regions are
    over-estimated rather than under-estimated.
    """
    return _bandwidth_bound(moved, fit=device.stream, device=device)


def special_time(moved: float, device: Device) -> float:
    """Seconds of an unfused kernel that evaluates an exponential or its like for each element it moves.

    Its own fit where there is one: on a processor such a kernel is bound by arithmetic, five times slower than a sum.
    """
    return _bandwidth_bound(moved, fit=device.special or device.stream, device=device)


def norm_time(moved: float, device: Device, *, backward: bool = False) -> float:
    """Seconds of an unfused normalisation that reads and writes `moved` bytes: t0 + Q / (e B).

    Its own fit, because eager norms reach only 0.38 to 0.61 of the bandwidth a copy reaches; the backward of an eager
    RMSNorm is a dozen kernels.
    """
    fit = device.norm_backward if backward and device.norm_backward else device.norm
    return _bandwidth_bound(moved, fit=fit, device=device)


def chore_time(name: str, device: Device, moved: float = 0.0) -> float:
    """Seconds of one chore of the program over `moved` bytes; none where the device does not wait for it."""
    chore = device.chores.get(name)
    if chore is None:
        return 0.0
    return chore.overhead + (moved / chore.rate if chore.rate else 0.0)


def idle_time(name: str, device: Device) -> float:
    """Seconds of a chore that finds nothing to move."""
    chore = device.chores.get(name)
    return 0.0 if chore is None else chore.idle


def attention_flops(heads: int, head_dim: int, pairs: float) -> float:
    """Forward FLOPs of attention: 4 x heads x head_dim x pairs, two products of 2 FLOPs a multiply-add.

    `pairs` counts the (query, key) pairs really computed: s^2 without a mask, s (s + 1) / 2 causal,
    the sum over documents when packed.
    """
    assert heads >= 0 and head_dim >= 0 and pairs >= 0, (heads, head_dim, pairs)
    return 4.0 * heads * head_dim * pairs


def attention_time(
    flops: float, length: float, *, backward: bool, dtype: str, device: Device, head_dim: int | None = None
) -> float:
    """Seconds of one attention kernel whose FORWARD work is `flops`, over sequences of `length` tokens.

    t = t0 + F / (e(s, d) P) with e(s, d) = ceiling x s / (s + half_length) x d / (d + half_width): short sequences and
    small heads fill the device badly. Backward does 2.5 times the forward work at its own efficiency. For a packed
    call, `length` is the token-weighted mean document. Raises InfeasibleError as `matmul_time` does.
    """
    assert flops >= 0 and length >= 0, (flops, length)
    if flops == 0:
        return 0.0
    fit = device.attention_backward if backward else device.attention_forward
    work = flops * ATTENTION_BACKWARD if backward else flops
    return fit.overhead + work / (attention_efficiency(length, fit, head_dim) * peak_rate(dtype, device))


def attention_efficiency(length: float, fit: AttentionFit, head_dim: int | None = None) -> float:
    """Share of the matrix peak that attention reaches at sequence length `length` (tokens, at least 1)."""
    tokens = max(length, 1.0)
    narrow = 1.0 if head_dim is None else head_dim / (head_dim + fit.half_width)
    return fit.ceiling * tokens / (tokens + fit.half_length) * narrow


def peak_rate(dtype: str, device: Device) -> float:
    """Dense peak of `dtype` in FLOP/s; raises InfeasibleError naming the dtypes the device has."""
    if dtype in device.peak:
        return device.peak[dtype]
    supported = ", ".join(sorted(device.peak)) or "none"
    raise InfeasibleError(f"{device.name} has no unit for {dtype}; it has {supported}; choose a precision among these")


def matmul_fit(dtype: str, device: Device) -> KernelFit:
    """The matrix-product efficiency of `dtype`: its own fit, else the device's fit for any dtype."""
    fit = device.matmul.get(dtype, device.matmul.get("any"))
    if fit is not None:
        return fit
    fitted = ", ".join(sorted(device.matmul)) or "none"
    raise InfeasibleError(
        f"{device.name} has no matmul efficiency for {dtype} (it has: {fitted}); "
        f'its profile must give one for {dtype} or for "any"'
    )


def _bandwidth_bound(moved: float, *, fit: KernelFit, device: Device) -> float:
    assert moved >= 0, moved
    if moved == 0:
        return 0.0
    near = min(moved, fit.cached)
    return fit.overhead + near / (fit.hot * device.bandwidth) + (moved - near) / (fit.memory * device.bandwidth)


def _rounded_maximum(first: float, second: float, shape: float) -> float:
    """The p-norm of two times; the larger is factored out so that neither power over- nor underflows."""
    larger, smaller = max(first, second), min(first, second)
    if larger == 0:
        return 0.0
    return float(larger * (1.0 + (smaller / larger) ** shape) ** (1.0 / shape))
