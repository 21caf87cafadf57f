"""Numbers of a profile that its rules have found to be there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from fourfold.hardware.profile import Profile
from fourfold.hardware.schema import WEAK, field_of


def needed(profile: Profile, path: str) -> float:
    """The number at `path` in SI."""
    value = profile.number(path)
    assert value is not None, f"{profile.name}: {path} passed the rules without a value"
    return value


def either(profile: Profile, path: str, default: float) -> float:
    """The number at `path` in SI, or `default` where the profile is silent."""
    value = profile.number(path)
    return default if value is None else value


def wholes(values: tuple[object, ...]) -> tuple[int, ...]:
    """The whole numbers of a list."""
    return tuple(value for value in values if isinstance(value, int))


# Values that the builders fill in where a profile is silent; the second path is what makes the first one matter.
FILLED: Final = {
    "device": (("memory.reserve", "memory.usable"),),
    "node": tuple((f"nic.{key}", "nic.count") for key in ("base", "base_small", "latency_small", "small_limit")),
}


def weak(profile: Profile) -> Iterator[tuple[str, str, str]]:
    """Values the machine is built from that were neither measured nor published by the vendor: path, status, source."""
    for path, leaf in profile.leaves.items():
        field = field_of(profile.kind, path)
        if leaf.status in WEAK and field is not None and field.priced:
            yield f"{profile.name}: {path}", leaf.status, leaf.source
    for path, needing in FILLED.get(profile.kind, ()):
        if profile.value(needing) and not profile.has(path):
            yield f"{profile.name}: {path}", "default", "the profile does not say"
