"""Calibration profiles become a Calibration: anchors of collectives and the slowdown of overlap."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from fourfold.hardware.build.reading import either, needed
from fourfold.hardware.checks.calibration import anchor_pairs
from fourfold.hardware.machine import Anchors, Calibration, Overlap
from fourfold.hardware.profile import Profile

SIZES: Final = tuple(4096.0 * 4**step for step in range(11))
"""4 KiB to 4 GiB by 4: where the points of a link lie when a row gives only its bandwidth and latency."""


def calibration_of(profiles: tuple[Profile, ...]) -> Calibration | None:
    """What the profiles measured together, a later one replacing what an earlier one says of the same group."""
    if not profiles:
        return None
    anchors = {(a.op, a.size, a.nodes): a for profile in profiles for a in _anchors(profile)}
    overlap = Overlap()
    for profile in profiles:
        overlap = Overlap(
            compute_slowdown=either(profile, "overlap.compute_slowdown", overlap.compute_slowdown),
            collective_slowdown=either(profile, "overlap.collective_slowdown", overlap.collective_slowdown),
        )
    return Calibration("+".join(profile.name for profile in profiles), tuple(anchors.values()), overlap)


def _anchors(profile: Profile) -> Iterator[Anchors]:
    for row in profile.rows("collective"):
        nodes = profile.whole(f"{row}.nodes", 1)
        yield Anchors(profile.text(f"{row}.op"), profile.whole(f"{row}.group"), nodes, anchor_pairs(profile, row))
    for row in profile.rows("p2p"):
        nodes = 1 if profile.text(f"{row}.placement") == "intra" else 2
        yield Anchors("send_recv", 2, nodes, _link(profile, row))


def _link(profile: Profile, row: str) -> tuple[tuple[float, float], ...]:
    if profile.has(f"{row}.anchors"):
        return anchor_pairs(profile, row)
    latency, bandwidth = needed(profile, f"{row}.latency"), needed(profile, f"{row}.per_direction")
    return tuple((size, latency + size / bandwidth) for size in SIZES)
