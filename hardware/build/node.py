"""A node profile becomes a Node: links, ports and host, or the first few devices of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from fourfold.hardware.build.reading import either, needed, wholes
from fourfold.hardware.checks.node import fabric_rate, graph_pairs
from fourfold.hardware.errors import ProfileError
from fourfold.hardware.parts import Delay, Fabric, Node, Ports
from fourfold.hardware.profile import Profile

# What NCCL's own tables say of any network, for ports that give no more than a rate and a latency.
PORT_BASE: Final = 8.4e-6
PORT_BASE_SMALL: Final = 6.6e-6
PORT_SMALL_STEP: Final = 0.2


def node_of(profile: Profile, *, efficiency: float) -> Node:
    """The node; `efficiency` is the device's share of the wire, for fabrics that state none of their own."""
    devices = profile.whole("devices")
    trays = devices / profile.whole("host.tray", devices)
    return Node(
        name=profile.name,
        device=profile.text("device"),
        devices=devices,
        domains=wholes(profile.items("host.numa")) or (0,) * devices,
        host_memory=either(profile, "host.memory", 0.0) * trays,
        host_bandwidth=profile.number("host.memory_bandwidth"),
        host_link=profile.number("host.device_link"),
        fabrics=tuple(_fabric(profile, row, efficiency) for row in profile.rows("fabric")),
        ports=_ports(profile),
    )


def first_devices(node: Node, count: int) -> Node:
    """The node as if it held only its first `count` devices; links to the others are lost.

    Raises ProfileError HW114 where the node has fewer.
    """
    if not 1 <= count <= node.devices:
        raise ProfileError(
            f"HW114 {node.name}@{count}: {node.name} has {node.devices} devices; take 1 to {node.devices}"
        )
    ports = node.ports and replace(node.ports, owners=node.ports.owners[:count])
    return replace(
        node,
        devices=count,
        domains=node.domains[:count],
        fabrics=tuple(_cut(fabric, count) for fabric in node.fabrics),
        ports=ports,
    )


def _cut(fabric: Fabric, count: int) -> Fabric:
    kept = (tuple(one for one in under if one < count) for under in fabric.switches)
    return replace(
        fabric,
        pairs=tuple(pair for pair in fabric.pairs if max(pair[:2]) < count),
        switches=tuple(under for under in kept if under),
        gains=tuple(gain for gain in fabric.gains if gain[0] <= count),
    )


def _fabric(profile: Profile, row: str, efficiency: float) -> Fabric:
    pairs = graph_pairs(profile, row)
    rate = fabric_rate(profile, row) or max((rate for _, _, rate in pairs), default=0.0)
    others = max(profile.whole("devices") - 1, 1)
    return Fabric(
        name=row.partition(".")[2],
        topology=profile.text(f"{row}.topology"),
        rate=rate,
        link=either(profile, f"{row}.link_per_direction", rate / others),
        pairs=pairs,
        switches=tuple(wholes(tuple(one)) for one in profile.items(f"{row}.switches") if isinstance(one, list)),
        uplink=profile.number(f"{row}.uplink_per_direction"),
        crossing=profile.number(f"{row}.cross_numa_per_direction"),
        efficiency=either(profile, f"{row}.link_efficiency", efficiency),
        delay=Delay(
            base=needed(profile, f"{row}.latency.base"),
            step=needed(profile, f"{row}.latency.step"),
            base_small=needed(profile, f"{row}.latency.base_small"),
            step_small=needed(profile, f"{row}.latency.step_small"),
            small_limit=needed(profile, f"{row}.latency.small_limit"),
        ),
        gains=_gains(profile, row),
    )


def _gains(profile: Profile, row: str) -> tuple[tuple[int, float], ...]:
    if "all_reduce" not in profile.texts(f"{row}.offload.collectives"):
        return ()
    least = profile.whole(f"{row}.offload.min_group", 2)
    entries = (entry for entry in profile.items(f"{row}.offload.gain") if isinstance(entry, list))
    return tuple(sorted((int(size), float(gain)) for size, gain in entries if size >= least))


def _ports(profile: Profile) -> Ports | None:
    count = profile.whole("nic.count")
    if not count:
        return None
    rate, step = needed(profile, "nic.per_direction"), needed(profile, "nic.latency")
    return Ports(
        rate=rate,
        owners=_owners(profile, count),
        transport=profile.text("nic.transport"),
        delay=Delay(
            base=either(profile, "nic.base", PORT_BASE),
            step=step,
            base_small=either(profile, "nic.base_small", PORT_BASE_SMALL),
            step_small=either(profile, "nic.latency_small", step * PORT_SMALL_STEP),
            small_limit=either(profile, "nic.small_limit", rate),
        ),
    )


def _owners(profile: Profile, count: int) -> tuple[tuple[int, ...], ...]:
    devices, affinity = profile.whole("devices"), profile.value("nic.affinity")
    if affinity == "shared":
        return (tuple(range(count)),) * devices
    if affinity == "identity":
        each = count // devices
        return tuple(tuple(range(device * each, (device + 1) * each)) for device in range(devices))
    return tuple((port,) for port in wholes(profile.items("nic.affinity")))
