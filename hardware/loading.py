"""From what the user wrote to a Machine: find the profiles, check them, apply their calibrations, assemble."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Final

from fourfold.hardware.build.calibration import calibration_of
from fourfold.hardware.build.cluster import EFFICIENCY, default_network, networks_of, policy_of
from fourfold.hardware.build.device import device_of, slowest
from fourfold.hardware.build.node import first_devices, node_of
from fourfold.hardware.build.reading import needed, weak
from fourfold.hardware.checks import demand
from fourfold.hardware.errors import ProfileError
from fourfold.hardware.library import SHIPPED, Library, open_for
from fourfold.hardware.machine import Device
from fourfold.hardware.parts import Group, Network, Node, Policy
from fourfold.hardware.profile import Profile
from fourfold.hardware.spec import Spec, parse
from fourfold.hardware.topology import Machine

# The factors that a measured section of a calibration replaces, so that nothing rests on them any more.
MEASURED: Final = {
    "matmul": ("matmul_",),
    "stream": ("stream_", "kernel_"),
    "norm": ("norm_",),
    "attention": ("attention_",),
    "host": ("launch_",),
}


@dataclass(frozen=True, slots=True)
class Member:
    """One group of nodes with the profiles behind it."""

    group: Group
    device: Device
    node_profile: Profile | None
    device_profile: Profile
    calibrations: tuple[Profile, ...]


def load(spec: str, *, folders: Iterable[str | Path] = (), calibration: str | None = None) -> Machine:
    """The machine that `spec` names: a node, four (`dgx-h200:4`), part of one (`dgx-h200@4`), a cluster, a device.

    `calibration` names measurements to apply beside those that the profiles name themselves and those in the user's
    folders that apply to the node. Raises ProfileError, its text starting with an HW code.
    """
    wanted = parse(spec)
    library, name = open_for(wanted, folders)
    profile = demand(library.profile(name), library)
    members = tuple(_members(profile, wanted, library, calibration))
    networks, policy = _joined(profile, members)
    alike = len({member.group.node.name for member in members}) == 1
    factors = [member.device_profile for member in members]
    return Machine(
        name=name,
        spec=wanted.text,
        device=slowest(tuple(member.device for member in members)),
        groups=tuple(member.group for member in members),
        networks=networks,
        policy=policy,
        latency_small=max(needed(one, "uncalibrated.collective_latency_small") for one in factors),
        latency_large=max(needed(one, "uncalibrated.collective_latency_large") for one in factors),
        overlap=min(needed(one, "uncalibrated.collective_overlap") for one in factors),
        calibration=calibration_of(members[0].calibrations) if alike else None,
        assumptions=tuple(_assumptions(profile, members)),
    )


def _members(profile: Profile, wanted: Spec, library: Library, extra: str | None) -> Iterator[Member]:
    if profile.is_abstract or profile.kind == "calibration":
        what = "only a base for others" if profile.is_abstract else "a calibration"
        raise ProfileError(f"HW116 {wanted.text}: {profile.name!r} is {what}; name a device, a node or a cluster")
    if profile.kind == "device":
        if wanted.nodes is not None or wanted.devices is not None:
            raise ProfileError(
                f"HW113 {wanted.text}: {profile.name!r} is one device without links; name a node instead"
            )
        yield _single(profile, library, extra)
    elif profile.kind == "node":
        yield _member(profile, profile.name, wanted, library, extra)
    else:
        if wanted.nodes is not None:
            raise ProfileError(
                f"HW113 {wanted.text}: {profile.name!r} is a cluster of {_counts(profile)}; edit its count instead"
            )
        for row in profile.rows("group"):
            node = demand(library.profile(profile.text(f"{row}.node")), library)
            one = replace(wanted, nodes=profile.whole(f"{row}.count"))
            yield _member(node, row.partition(".")[2], one, library, extra)


def _member(profile: Profile, name: str, wanted: Spec, library: Library, extra: str | None) -> Member:
    device_profile = demand(library.profile(profile.text("device")), library)
    calibrations = _calibrations(device_profile, profile, library, extra)
    node = node_of(profile, efficiency=needed(device_profile, "uncalibrated.collective_bandwidth"))
    node = node if wanted.devices is None else first_devices(node, wanted.devices)
    if node.devices > 1 and not node.fabrics:
        raise ProfileError(f"HW246 {profile.name}: {node.devices} devices and no [[fabric]] that joins them")
    group = Group(name, node, wanted.nodes or 1)
    return Member(group, device_of(device_profile, calibrations), profile, device_profile, calibrations)


def _single(profile: Profile, library: Library, extra: str | None) -> Member:
    """A device alone, as a node of one."""
    node = Node(profile.name, profile.name, 1, (0,), 0.0, None, None, (), None)
    calibrations = _calibrations(profile, None, library, extra)
    return Member(Group(profile.name, node, 1), device_of(profile, calibrations), None, profile, calibrations)


def _joined(profile: Profile, members: tuple[Member, ...]) -> tuple[tuple[Network, ...], Policy]:
    if profile.kind == "cluster":
        return networks_of(profile), policy_of(profile)
    group = members[0].group
    if group.count == 1:
        return (), Policy()
    if group.node.ports is None:
        raise ProfileError(
            f"HW257 {profile.name}: no network port, so {group.count} nodes cannot be joined; describe them with "
            f"`fourfold hardware new NAME --from {profile.name} --nodes {group.count} --nic '400 Gb/s'`"
        )
    return (default_network(group.node),), Policy()


def _calibrations(device: Profile, node: Profile | None, library: Library, extra: str | None) -> tuple[Profile, ...]:
    """Later ones count more: the device's own, the node's own, the user's for this node by date, the one asked for."""
    named = [*device.texts("calibration"), *(node.texts("calibration") if node else ())]
    own = [] if node is None else [one.name for one in _measured_by_user(node.name, library)]
    names = dict.fromkeys((*named, *own, *((extra,) if extra else ())))
    found = tuple(demand(library.profile(name), library) for name in names)
    for one in found:
        targets = one.texts("applies_to.device")
        if one.kind != "calibration" or (targets and device.name not in targets):
            what = f"it was measured on {', '.join(targets)}" if one.kind == "calibration" else f"it is a {one.kind}"
            raise ProfileError(f"HW305 calibration {one.name!r} does not apply to {device.name}: {what}")
    return found


def _measured_by_user(node: str, library: Library) -> list[Profile]:
    """The user's calibrations of a node, oldest first; what cannot be read is for `check` to report."""
    found = []
    for name in (name for name, files in library.files.items() if SHIPPED not in files[0].parents):
        try:
            profile = library.profile(name)
        except ProfileError:
            continue
        if profile.kind == "calibration" and node in profile.texts("applies_to.node"):
            found.append(profile)
    return sorted(found, key=_date)


def _date(profile: Profile) -> str:
    value = profile.value("meta.date")
    return value.isoformat() if isinstance(value, date) else str(value)


def _assumptions(profile: Profile, members: tuple[Member, ...]) -> Iterator[tuple[str, str, str]]:
    if profile.kind == "cluster":
        yield from weak(profile)
    elif members[0].group.count > 1:
        yield (
            "network",
            "default",
            f"ports at full rate, nothing shared, {EFFICIENCY:.0%} of the wire; nobody described it",
        )
    several = sum(member.group.count for member in members) > 1
    seen: dict[str, tuple[str, str, str]] = {}
    for member in members:
        if member.node_profile is not None:
            seen |= {one[0]: one for one in weak(member.node_profile) if several or ": nic." not in one[0]}
        gone = tuple(
            f": uncalibrated.{key}"
            for one in member.calibrations
            for row in MEASURED
            if one.has(row)
            for key in MEASURED[row]
        )
        seen |= {one[0]: one for one in weak(member.device_profile) if not any(key in one[0] for key in gone)}
    yield from seen.values()


def _counts(profile: Profile) -> str:
    return " + ".join(f"{profile.whole(f'{row}.count')} {profile.text(f'{row}.node')}" for row in profile.rows("group"))
