"""Rules for a cluster: groups of nodes that exist, joined by networks that say their direction (HW250-HW257)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from fourfold.hardware.checks.finding import Finding
from fourfold.hardware.errors import ProfileError
from fourfold.hardware.library import Library, near
from fourfold.hardware.profile import Profile

RATES: Final = ("per_direction", "per_node_per_direction")


def groups(profile: Profile, library: Library) -> Iterator[Finding]:
    """HW250, HW251: each group has a known node and a count."""
    if not profile.rows("group"):
        yield "HW250", "group", "a cluster needs at least one [[group]] with name, node and count"
    for row in profile.rows("group"):
        name, count = profile.text(f"{row}.node"), profile.value(f"{row}.count")
        if name and _node(name, library) is None:
            yield "HW250", f"{row}.node", f"no node profile named {name!r}{near(name, library.files)}"
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            yield "HW251", f"{row}.count", f"count is {count!r}; it must be a whole number of at least 1"


def networks(profile: Profile, _: Library) -> Iterator[Finding]:
    """HW252, HW253, HW254: networks join known groups at a stated rate, with more capacity below than above."""
    names = _names(profile)
    for row in profile.rows("network"):
        for name in profile.texts(f"{row}.groups"):
            if name not in names:
                yield "HW252", f"{row}.groups", f"no group is named {name!r}; there are {', '.join(names)}"
        if profile.has(f"{row}.bandwidth") or not any(profile.has(f"{row}.{rate}") for rate in RATES):
            yield "HW253", row, "the rate is missing; write per_direction (each port) or per_node_per_direction"
        ratio = profile.value(f"{row}.oversubscription")
        if isinstance(ratio, int | float) and ratio < 1:
            yield (
                "HW254",
                f"{row}.oversubscription",
                f"{ratio} is below 1; it is the capacity towards the nodes over the capacity upwards, "
                "1 where nothing is lost",
            )


def joined(profile: Profile, _: Library) -> Iterator[Finding]:
    """HW255: every two groups lie on one network, and so do the nodes of one group."""
    names = _names(profile)
    spans = [set(profile.texts(f"{row}.groups") or names) for row in profile.rows("network")]
    alone = [name for name in names if _count(profile, name) > 1 and not any(name in span for span in spans)]
    for name in alone:
        yield "HW255", f"group.{name}", f"no network joins the nodes of group {name!r}"
    for first, one in enumerate(names):
        for other in names[first + 1 :]:
            if not any({one, other} <= span for span in spans):
                yield (
                    "HW255",
                    "network",
                    f"no network joins the groups {one!r} and {other!r}; add one with both in groups",
                )


def sizes(profile: Profile, library: Library) -> Iterator[Finding]:
    """HW256, HW257: nodes have equally many devices, and ports where there is more than one node."""
    nodes = {name: node for name in _nodes(profile) if (node := _node(name, library)) is not None}
    counts = {name: node.whole("devices") for name, node in nodes.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} has {count}" for name, count in counts.items())
        yield "HW256", "group", f"nodes must have equally many devices: {listed}; take part of the larger one"
    several = sum(_count(profile, name) for name in _names(profile)) > 1
    for name, node in nodes.items():
        if several and not node.whole("nic.count"):
            yield (
                "HW257",
                "group",
                f"node {name!r} has no network port, so it cannot be joined to others; give it a [nic]",
            )


RULES: Final = (groups, networks, joined, sizes)


def _names(profile: Profile) -> list[str]:
    return [row.partition(".")[2] for row in profile.rows("group")]


def _nodes(profile: Profile) -> list[str]:
    return [profile.text(f"{row}.node") for row in profile.rows("group")]


def _count(profile: Profile, group: str) -> int:
    return profile.whole(f"group.{group}.count")


def _node(name: str, library: Library) -> Profile | None:
    if name not in library.files:
        return None
    try:
        profile = library.profile(name)
    except ProfileError:
        return None
    return profile if profile.kind == "node" else None
