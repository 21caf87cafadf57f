"""Rules for a device: dense peaks that agree with each other and the silicon, memory that adds up (HW203-HW223)."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Final

from fourfold.hardware.checks.finding import Finding, si
from fourfold.hardware.library import Library
from fourfold.hardware.profile import Profile
from fourfold.hardware.schema import DTYPES, OPTIONAL_DTYPES

# Dense fp16 matrix FLOP per clock and unit with fp32 accumulation; every part of these architectures agrees to 10 %.
FLOPS_PER_CLOCK: Final = {
    "sm_60": 256,
    "sm_70": 1024,
    "sm_80": 2048,
    "sm_89": 1024,
    "sm_90": 4096,
    "sm_100": 8192,
    "gfx90a": 1024,
    "gfx942": 2048,
    "gfx950": 4096,
}
RATIOS: Final = (("fp16", "fp8", 1.5, 2.6), ("fp8", "fp4", 1.3, 4.5), ("tf32", "bf16", 1.5, 3.0))


def dtypes(profile: Profile, _: Library) -> Iterator[Finding]:
    """HW203, HW204: every dtype is rated or unsupported, and no other name is used."""
    for dtype in DTYPES:
        if not profile.has(f"peak.{dtype}"):
            yield "HW203", f"peak.{dtype}", f'peak.{dtype} is missing; give the dense rate or write "unsupported"'
    for path in profile.leaves:
        dtype = path.removeprefix("peak.")
        if path.startswith("peak.") and dtype not in (*DTYPES, *OPTIONAL_DTYPES):
            yield "HW204", path, f"{path} is not a dtype; {_closest(dtype)}"


def ratios(profile: Profile, _: Library) -> Iterator[Finding]:
    """HW212, HW213: the rates of the dtypes stand in the proportions that hardware has."""
    for low, high, least, most in RATIOS:
        slow, fast = si(profile, f"peak.{low}"), si(profile, f"peak.{high}")
        if slow and fast and not least <= fast / slow <= most:
            yield (
                "HW212",
                f"peak.{high}",
                f"peak.{high} is {fast / slow:.2f} x peak.{low}; expected {least} to {most}: one of them may be the "
                "rate with 2:4 sparsity, or with the other accumulator",
            )
    half, brain = si(profile, "peak.fp16"), si(profile, "peak.bf16")
    if half and brain and half != brain:
        yield (
            "HW213",
            "peak.bf16",
            f"peak.bf16 is {brain / 1e12:.5g} TFLOP/s and peak.fp16 {half / 1e12:.5g}; both use the same units",
        )


def clock(profile: Profile, _: Library) -> Iterator[Finding]:
    """HW214: the fp16 rate is units x clock x FLOP per clock of the architecture, without sparsity."""
    rate, hertz = si(profile, "peak.fp16"), si(profile, "execution.clock")
    per_clock = FLOPS_PER_CLOCK.get(profile.text("execution.arch"), 0)
    units = profile.whole("execution.units")
    if not rate or not hertz or not per_clock or not units or profile.value("execution.tensor_rate_capped"):
        return
    if any("GeForce" in name for name in profile.texts("match.name")):
        per_clock = 512  # consumer parts halve the rate with fp32 accumulation
    dense = units * hertz * per_clock
    product = f"{units} units x {hertz / 1e6:.0f} MHz x {per_clock} FLOP"
    if 1.8 < rate / dense < 2.2:
        yield (
            "HW214",
            "peak.fp16",
            f"twice what {product} give ({dense / 1e12:.0f} TFLOP/s): this looks like the rate with sparsity; "
            "give the dense one",
        )
    elif not 0.85 < rate / dense < 1.10:
        yield (
            "HW214",
            "peak.fp16",
            f"{rate / dense:.2f} x what {product} give ({dense / 1e12:.0f} TFLOP/s); check the three numbers, or set "
            "execution.tensor_rate_capped = true if the part is cut",
        )


def memory(profile: Profile, _: Library) -> Iterator[Finding]:
    """HW221, HW222: the usable memory fits the label and the bandwidth is one a memory can have."""
    label, usable = si(profile, "memory.capacity"), si(profile, "memory.usable")
    if label and usable and not 0.85 < usable / label < 1.08:
        yield (
            "HW221",
            "memory.usable",
            f"memory.usable is {usable / label:.2f} x memory.capacity; check GB against GiB (1 GiB = 1.074 GB) and "
            "MB against MiB",
        )
    rate = si(profile, "memory.bandwidth")
    if rate is not None and not 5e9 <= rate <= 4e13:
        yield "HW222", "memory.bandwidth", f"{rate / 1e9:.3g} GB/s is out of range; bits for bytes, or GB/s for TB/s?"


def ridge(profile: Profile, _: Library) -> Iterator[Finding]:
    """HW223: compute and bandwidth are in a proportion that accelerators have."""
    rate, bandwidth = si(profile, "peak.bf16"), si(profile, "memory.bandwidth")
    if not rate or not bandwidth or profile.text("execution.vendor") == "cpu":
        return
    if not 20 <= rate / bandwidth <= 600:
        yield (
            "HW223",
            "memory.bandwidth",
            f"peak.bf16 over memory.bandwidth is {rate / bandwidth:.0f} FLOP per byte; accelerators have 20 to 600",
        )


RULES: Final = (dtypes, ratios, clock, memory, ridge)


def _closest(dtype: str) -> str:
    close = {
        "bfloat16": "bf16",
        "float16": "fp16",
        "half": "fp16",
        "float32": "fp32",
        "float64": "fp64",
        "float8": "fp8",
    }
    near = [close[dtype]] if dtype in close else difflib.get_close_matches(dtype, DTYPES, 1)
    return f"did you mean {near[0]}?" if near else f"use {', '.join(DTYPES)}"
