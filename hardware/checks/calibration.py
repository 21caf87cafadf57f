"""Rules for a calibration: it names what it measured, and its points look like times (HW260-HW266)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Final

from fourfold.hardware.checks.finding import Finding
from fourfold.hardware.library import Library, near
from fourfold.hardware.profile import Profile
from fourfold.hardware.units import UnitError, quantity, short


def target(profile: Profile, library: Library) -> Iterator[Finding]:
    """HW260: what it applies to exists."""
    if not profile.has("applies_to.device") and not profile.has("applies_to.node"):
        yield "HW260", "applies_to", "applies_to names neither a device nor a node"
    for key in ("device", "node"):
        for name in profile.texts(f"applies_to.{key}"):
            if name not in library.files:
                yield "HW260", f"applies_to.{key}", f"no {key} profile named {name!r}{near(name, library.files)}"


def meta(profile: Profile, _: Library) -> Iterator[Finding]:
    """HW261: when and how it was made."""
    for key in ("date", "method"):
        if not profile.has(f"meta.{key}"):
            yield "HW261", f"meta.{key}", f"meta.{key} is missing: a measurement without it cannot be judged later"


def points(profile: Profile, _: Library) -> Iterator[Finding]:
    """HW262, HW263, HW264, HW266: enough anchors, sizes that grow, times that do not fall."""
    for row in (*profile.rows("collective"), *profile.rows("p2p")):
        path, what = f"{row}.anchors", _name(profile, row)
        if not profile.has(path):
            if not (row.startswith("p2p.") and profile.has(f"{row}.per_direction") and profile.has(f"{row}.latency")):
                yield "HW266", row, f"{what} has no anchors; p2p may give per_direction and latency instead"
            continue
        try:
            pairs = anchor_pairs(profile, row)
        except UnitError as error:
            yield error.code, path, error.text
            continue
        yield from _series(path, what, pairs)


def fits(profile: Profile, _: Library) -> Iterator[Finding]:
    """HW265: fitted efficiencies are fractions; a little above 1 is possible where caches help."""
    for row in profile.rows("matmul"):
        yield from _fractions(profile, row, ("compute", "memory"))
    for row in (*profile.rows("stream"), *profile.rows("norm")):
        yield from _fractions(profile, row, ("efficiency",))
    for row in profile.rows("attention"):
        yield from _fractions(profile, row, ("ceiling",))


RULES: Final = (target, meta, points, fits)


def anchor_pairs(profile: Profile, row: str) -> tuple[tuple[float, float], ...]:
    """The anchors of a row as (bytes, seconds). Raises UnitError where one is not a pair of quantities."""
    pairs = []
    for entry in profile.items(f"{row}.anchors"):
        if not isinstance(entry, list) or len(entry) != 2:
            raise UnitError("HW102", f'{entry!r} is not an anchor; write ["64 KiB", "33 us"]')
        pairs.append((quantity(entry[0], "bytes"), quantity(entry[1], "time")))
    return tuple(pairs)


def _series(path: str, what: str, pairs: tuple[tuple[float, float], ...]) -> Iterator[Finding]:
    if len(pairs) < 4:
        yield "HW262", path, f"{what} has {len(pairs)} anchors; at least 4 are needed"
    for (small, early), (large, late) in pairwise(pairs):
        if large <= small:
            yield "HW263", path, f"{what}: sizes must increase, {short(large, 'bytes')} follows {short(small, 'bytes')}"
        elif late < 0.8 * early:
            yield (
                "HW264",
                path,
                f"{what}: the time falls from {short(early, 'time')} to {short(late, 'time')} "
                f"at {short(large, 'bytes')}: noise, or a warm-up",
            )


def _fractions(profile: Profile, row: str, keys: tuple[str, ...]) -> Iterator[Finding]:
    for key in keys:
        value = profile.value(f"{row}.{key}")
        if isinstance(value, int | float) and not 0 < value <= 1.3:
            yield "HW265", f"{row}.{key}", f"{key} = {value} is not a fraction of the peak (0 to 1.3)"


def _name(profile: Profile, row: str) -> str:
    return f"{profile.text(f'{row}.op', 'p2p')} over {profile.whole(f'{row}.group', 2)}"
