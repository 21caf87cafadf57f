"""Rules for a node: links that add up and say their direction, ports that fit the devices (HW230-HW247)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from fourfold.hardware.checks.finding import Finding, si
from fourfold.hardware.errors import ProfileError
from fourfold.hardware.library import Library, near
from fourfold.hardware.profile import Profile
from fourfold.hardware.units import UnitError, quantity, short

# The fastest link of each kind that one can buy, bytes per second one way, with room above.
LIMITS: Final = {"switch": 2e12, "mesh": 1e12, "pcie-tree": 1.3e11, "host-staged": 6.5e10, "graph": 1e12}


def device(profile: Profile, library: Library) -> Iterator[Finding]:
    """HW230, HW240: the node has devices, and their profile exists."""
    name = profile.text("device")
    try:
        found = library.profile(name).kind == "device" if name in library.files else False
    except ProfileError as error:
        yield "HW230", "device", f"the device profile {name!r} cannot be used: {error}"
        return
    if name and not found:
        yield "HW230", "device", f"no device profile named {name!r}{near(name, library.files)}"
    if profile.has("devices") and profile.whole("devices") < 1:
        yield "HW240", "devices", f"devices is {profile.value('devices')!r}; a node has at least 1"


def direction(profile: Profile, _: Library) -> Iterator[Finding]:
    """HW231: every link says whether its rate is one way or both ways together."""
    for row in (*profile.rows("fabric"), "nic"):
        if profile.has(f"{row}.bandwidth"):
            yield (
                "HW231",
                f"{row}.bandwidth",
                "bandwidth does not say which direction; write per_direction (one way, per device) or bidirectional "
                "(both ways together)",
            )
            continue
        given = [key for key in ("per_direction", "bidirectional") if profile.has(f"{row}.{key}")]
        if len(given) == 2:
            yield "HW231", row, "per_direction and bidirectional are both given; keep one"
        if not given and row != "nic" and profile.text(f"{row}.topology") != "graph":
            yield "HW231", row, "the rate is missing; write per_direction (one way, per device) or bidirectional"


def links(profile: Profile, _: Library) -> Iterator[Finding]:
    """HW232, HW235: links x link rate is the device's rate, and a full mesh has one link to each other device."""
    count = profile.whole("devices")
    for row in profile.rows("fabric"):
        rate, link, number = (
            fabric_rate(profile, row),
            si(profile, f"{row}.link_per_direction"),
            profile.whole(f"{row}.links"),
        )
        if rate and link and number and abs(rate / (number * link) - 1) > 0.03:
            yield (
                "HW232",
                f"{row}.per_direction",
                f"{number} links x {short(link, 'bandwidth')} = {short(number * link, 'bandwidth')}, but per_direction "
                f"is {short(rate, 'bandwidth')}; {_doubled(rate / (number * link))}",
            )
        if profile.text(f"{row}.topology") == "mesh" and number and number != count - 1:
            yield (
                "HW235",
                f"{row}.links",
                f"a full mesh of {count} devices needs {count - 1} links per device, not {number}",
            )


def graph(profile: Profile, _: Library) -> Iterator[Finding]:
    """HW233, HW234, HW238: the pairs of a graph name devices of this node, join them all and add up evenly."""
    count = profile.whole("devices")
    for row in profile.rows("fabric"):
        if count < 1 or profile.text(f"{row}.topology") != "graph":
            continue
        wrong = [pair for pair in profile.items(f"{row}.pairs") if not _is_pair(pair, count)]
        if wrong:
            yield "HW234", f"{row}.pairs", f'{wrong[0]!r} is not [device, device, "rate"] with devices 0 to {count - 1}'
            continue
        pairs = graph_pairs(profile, row)
        totals = [sum(rate for a, b, rate in pairs if one in (a, b)) for one in range(count)]
        span = f"{short(min(totals), 'bandwidth')} to {short(max(totals), 'bandwidth')}"
        if max(totals) > 1.01 * min(totals) and profile.value(f"{row}.uneven") is not True:
            yield (
                "HW233",
                f"{row}.pairs",
                f"devices have unequal link totals, {span}; a pair may be missing or listed twice "
                "(uneven = true says that it is right)",
            )
        apart = _apart(pairs, count)
        if apart:
            yield "HW238", f"{row}.pairs", f"no pair leads from device 0 to device {apart[0]}"


def shape(profile: Profile, _: Library) -> Iterator[Finding]:
    """HW236, HW237, HW239: a known topology, at a rate that such a link can have, with every device under a switch."""
    for row in profile.rows("fabric"):
        topology, rate = profile.text(f"{row}.topology"), fabric_rate(profile, row)
        if topology not in LIMITS and profile.has(f"{row}.topology"):
            yield "HW236", f"{row}.topology", f"unknown topology {topology!r}; use {', '.join(LIMITS)}"
        elif rate and rate > LIMITS.get(topology, rate):
            yield (
                "HW237",
                f"{row}.per_direction",
                f"{short(rate, 'bandwidth')} one way is more than any {topology} link of today; bits for bytes, or a "
                "total of the node?",
            )
        listed = sorted(one for group in profile.items(f"{row}.switches") if isinstance(group, list) for one in group)
        if topology == "pcie-tree" and listed != list(range(profile.whole("devices"))):
            yield "HW239", f"{row}.switches", f"switches must list each of the {profile.whole('devices')} devices once"


def offload(profile: Profile, _: Library) -> Iterator[Finding]:
    """HW247: the gain of an offload is a list of [group size, factor] with factors of at least 1."""
    for row in profile.rows("fabric"):
        for entry in profile.items(f"{row}.offload.gain"):
            if (
                not isinstance(entry, list)
                or len(entry) != 2
                or not all(isinstance(n, int | float) and n >= 1 for n in entry)
            ):
                yield "HW247", f"{row}.offload.gain", f"{entry!r} is not [group size, factor >= 1]"


def ports(profile: Profile, _: Library) -> Iterator[Finding]:
    """HW241, HW242, HW201: each network port has a rate that one port can have."""
    count, rate = profile.whole("nic.count"), si(profile, "nic.per_direction")
    if not count:
        return
    for key in ("per_direction", "affinity", "latency"):
        if not profile.has(f"nic.{key}") and not profile.has("nic.bandwidth"):
            yield "HW201", f"nic.{key}", f"nic.{key} is missing: the node has {count} ports"
    if rate and rate > 1.3e11:
        yield (
            "HW241",
            "nic.per_direction",
            f"{rate * 8 / 1e9:.0f} Gb/s per port; network speeds are quoted in bits (400 Gb/s = 50 GB/s), and a total "
            "of the node belongs in count x per_direction",
        )
    if rate is not None and rate < 1e8:
        yield "HW242", "nic.per_direction", f"only {rate * 8 / 1e9:.2g} Gb/s per port; check the unit"


def affinity(profile: Profile, _: Library) -> Iterator[Finding]:
    """HW243, HW244, HW245: lists over the devices have one entry each, and name ports that exist."""
    count, owners, numa = profile.whole("devices"), profile.value("nic.affinity"), profile.value("host.numa")
    number = profile.whole("nic.count") if owners is not None else 0
    if number and not isinstance(owners, list) and owners not in ("identity", "shared"):
        yield "HW243", "nic.affinity", 'affinity must be a list with the port of each device, "identity" or "shared"'
    if number and isinstance(owners, list) and len(owners) != count:
        yield "HW243", "nic.affinity", f"nic.affinity has {len(owners)} entries for {count} devices"
    if number and owners == "identity" and number % max(count, 1):
        yield (
            "HW243",
            "nic.affinity",
            f'"identity" deals {number} ports to {count} devices evenly, which is not possible',
        )
    for port in owners if number and isinstance(owners, list) else ():
        if not isinstance(port, int) or not 0 <= port < number:
            yield (
                "HW244",
                "nic.affinity",
                f"affinity names port {port!r}, but nic.count is {number} (ports 0 to {number - 1})",
            )
    if isinstance(numa, list) and len(numa) != count:
        yield "HW245", "host.numa", f"host.numa has {len(numa)} entries for {count} devices"


RULES: Final = (device, direction, links, graph, shape, offload, ports, affinity)


def fabric_rate(profile: Profile, row: str) -> float | None:
    """What one device sends one way over a fabric, however the file states it."""
    both = si(profile, f"{row}.bidirectional")
    return both / 2 if both is not None else si(profile, f"{row}.per_direction")


def graph_pairs(profile: Profile, row: str) -> tuple[tuple[int, int, float], ...]:
    """The pairs of a graph fabric as (device, device, bytes per second one way)."""
    rows = (pair for pair in profile.items(f"{row}.pairs") if isinstance(pair, list))
    return tuple((int(a), int(b), quantity(rate, "bandwidth")) for a, b, rate in rows)


def _is_pair(pair: object, count: int) -> bool:
    if not isinstance(pair, list) or len(pair) != 3 or pair[0] == pair[1]:
        return False
    try:
        quantity(pair[2], "bandwidth")
    except UnitError:
        return False
    return all(isinstance(one, int) and 0 <= one < count for one in pair[:2])


def _apart(pairs: tuple[tuple[int, int, float], ...], count: int) -> list[int]:
    """The devices that no chain of pairs joins to device 0."""
    seen = {0}
    for _ in range(count):
        seen |= {b for a, b, _ in pairs if a in seen} | {a for a, b, _ in pairs if b in seen}
    return sorted(set(range(count)) - seen)


def _doubled(ratio: float) -> str:
    if 1.9 < ratio < 2.1:
        return "per_direction may be the figure of both ways together"
    if 0.45 < ratio < 0.55:
        return "the link rate may be the figure of both ways together"
    return "check the three numbers"
