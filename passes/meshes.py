"""The meshes worth pricing: every factorisation of the ranks into data and tensor degrees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from fourfold.hardware.errors import UsageError
from fourfold.ir.mesh import Mesh

PINS = ("dp", "tp", "pp", "sp", "zero", "recompute", "capacity", "micro_steps")
"""Pins that name a degree or a setting; any other pin is a module name (globs allowed) with a label to cut."""


def meshes(ranks: int, pins: Mapping[str, str | int]) -> Iterator[Mesh]:
    """dp x tp = ranks for every divisor, pins respected. Raises UsageError when the pins cannot fill the ranks."""
    for axis in ("pp", "sp"):
        if int(pins.get(axis, 1)) != 1:
            raise UsageError(f"{axis}={pins[axis]} is not available: this version plans data (dp) and tensor (tp) degrees")
    degrees = [tp for tp in range(1, ranks + 1) if ranks % tp == 0]
    wanted = [tp for tp in degrees if int(pins.get("tp", tp)) == tp and int(pins.get("dp", ranks // tp)) == ranks // tp]
    if not wanted:
        pinned = " x ".join(f"{axis}{pins[axis]}" for axis in ("dp", "tp") if axis in pins)
        raise UsageError(f"{pinned} does not fill {ranks} ranks; tp may be {', '.join(map(str, degrees))}, dp = {ranks} / tp")
    for tp in wanted:
        yield Mesh(dp=ranks // tp, tp=tp)
