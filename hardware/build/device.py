"""A device profile, with the calibrations that apply to it, becomes a Device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from fourfold.hardware.build.reading import either, needed
from fourfold.hardware.machine import AttentionFit, Chore, Device, KernelFit
from fourfold.hardware.profile import Profile

# Context and communicator buffers where a profile is silent.
RESERVE: Final = 1.5 * 2**30


def device_of(profile: Profile, calibrations: tuple[Profile, ...]) -> Device:
    """The device with its uncalibrated factors, overridden by each calibration in turn."""
    device = _uncalibrated(profile)
    for calibration in calibrations:
        device = _calibrated(device, calibration)
    return device


def slowest(devices: tuple[Device, ...]) -> Device:
    """The device a mixed machine is planned with: the slowest, with only what all of them have.

    Every rank waits for the slowest, so its kernel times count; the least memory bounds every rank.
    """
    slow = min(devices, key=_speed)
    shared = {
        dtype: min(d.peak[dtype] for d in devices) for dtype in slow.peak if all(dtype in d.peak for d in devices)
    }
    return replace(
        slow,
        peak=shared,
        usable=min(device.usable for device in devices),
        reserve=max(device.reserve for device in devices),
        bandwidth=min(device.bandwidth for device in devices),
    )


def _speed(device: Device) -> float:
    peak = max((device.peak.get(dtype, 0.0) for dtype in ("bf16", "fp16")), default=0.0) or device.peak.get("fp32", 0.0)
    fit = device.matmul.get("bf16", device.matmul["any"])
    return peak * fit.compute


def _uncalibrated(profile: Profile) -> Device:
    peak = {
        path.removeprefix("peak."): rate
        for path in profile.leaves
        if path.startswith("peak.") and (rate := profile.number(path)) is not None
    }
    matmul = KernelFit(
        compute=_factor(profile, "matmul_compute"),
        memory=_factor(profile, "matmul_memory"),
        shape=_factor(profile, "matmul_shape"),
        overhead=_factor(profile, "matmul_overhead"),
    )
    return Device(
        name=profile.name,
        vendor=profile.text("execution.vendor"),
        arch=profile.text("execution.arch"),
        units=profile.whole("execution.units"),
        peak=peak,
        usable=needed(profile, "memory.usable"),
        reserve=either(profile, "memory.reserve", RESERVE),
        bandwidth=needed(profile, "memory.bandwidth"),
        l2=either(profile, "execution.l2", 0.0),
        collectives=profile.text("capability.collectives"),
        matmul={"any": matmul},
        stream=_elementwise(profile, "stream_memory"),
        norm=_elementwise(profile, "norm_memory"),
        attention_forward=_attention(profile, "attention_forward"),
        attention_backward=_attention(profile, "attention_backward"),
        launch=_factor(profile, "launch_host"),
    )


def _factor(profile: Profile, name: str) -> float:
    return needed(profile, f"uncalibrated.{name}")


def _elementwise(profile: Profile, factor: str) -> KernelFit:
    """Bound by memory alone: the compute term is there, at the full peak, and never decides."""
    return KernelFit(
        compute=1.0,
        memory=_factor(profile, factor),
        shape=_factor(profile, "matmul_shape"),
        overhead=_factor(profile, "kernel_overhead"),
    )


def _attention(profile: Profile, factor: str) -> AttentionFit:
    return AttentionFit(
        ceiling=_factor(profile, factor),
        half_length=_factor(profile, "attention_half_length"),
        overhead=_factor(profile, "kernel_overhead"),
    )


def _calibrated(device: Device, calibration: Profile) -> Device:
    """`device` with what one calibration measured; of several rows for the same thing the first counts."""
    matmul = dict(device.matmul)
    for row in reversed(calibration.rows("matmul")):
        matmul[calibration.text(f"{row}.dtype")] = _kernel(calibration, row)
    special = _row(calibration, "stream", "kind", "special")
    stream = next((row for row in calibration.rows("stream") if row != special), None)
    backward = _row(calibration, "norm", "pass", "backward")
    return replace(
        device,
        matmul=matmul,
        stream=_measured_rate(device.stream, calibration, stream),
        norm=_measured_rate(device.norm, calibration, _row(calibration, "norm", "pass", "forward", "")),
        attention_forward=_measured_attention(device.attention_forward, calibration, "forward"),
        attention_backward=_measured_attention(device.attention_backward, calibration, "backward"),
        launch=either(calibration, "host.launch_eager", device.launch),
        special=device.special if special is None else _measured_rate(device.stream, calibration, special),
        norm_backward=device.norm_backward if backward is None else _measured_rate(device.norm, calibration, backward),
        chores={**device.chores, **_chores(calibration)},
    )


def _kernel(calibration: Profile, row: str) -> KernelFit:
    return KernelFit(**_numbers(calibration, row, ("compute", "memory", "shape", "overhead")))


def _measured_rate(fit: KernelFit, calibration: Profile, row: str | None) -> KernelFit:
    if row is None:
        return fit
    measured = _numbers(calibration, row, ("efficiency", "overhead"))
    cached, hot = either(calibration, f"{row}.cached", 0.0), either(calibration, f"{row}.hot", 1.0)
    return replace(fit, memory=measured["efficiency"], overhead=measured["overhead"], cached=cached, hot=hot)


def _measured_attention(fit: AttentionFit, calibration: Profile, direction: str) -> AttentionFit:
    row = _row(calibration, "attention", "pass", direction)
    if row is None:
        return fit
    numbers = _numbers(calibration, row, ("ceiling", "half_length", "overhead"))
    return AttentionFit(**numbers, half_width=either(calibration, f"{row}.half_width", 0.0))


def _chores(calibration: Profile) -> dict[str, Chore]:
    keys = ("overhead", "rate", "idle")
    return {
        row.partition(".")[2]: Chore(*(either(calibration, f"{row}.{key}", 0.0) for key in keys))
        for row in calibration.rows("chore")
    }


def _row(calibration: Profile, array: str, key: str, *values: str) -> str | None:
    """The first row of an array whose `key` is one of `values`."""
    return next((row for row in calibration.rows(array) if calibration.text(f"{row}.{key}") in values), None)


def _numbers(profile: Profile, row: str, keys: tuple[str, ...]) -> Mapping[str, float]:
    return {key: needed(profile, f"{row}.{key}") for key in keys}
