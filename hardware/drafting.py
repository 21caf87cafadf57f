"""New profiles as TOML text: a cluster of nodes that the user names, to be edited from there."""

from __future__ import annotations

import json
import re
from typing import Final

from fourfold.hardware.errors import ProfileError, UsageError
from fourfold.hardware.library import open_library
from fourfold.hardware.profile import Profile
from fourfold.hardware.schema import VERSION
from fourfold.hardware.units import quantity, render

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
WRITTEN: Final = "written by `fourfold hardware new`: replace by what you know"

CLUSTER: Final = """schema = "{version}"
kind = "cluster"
name = "{name}"
summary = "{nodes} x {node}"

[[group]]
name = "nodes"
node = "{node}"
count = {nodes}

[network]
topology = "{topology}"
per_direction = "{nic}"        # each port, one way
oversubscription = 1.0            # capacity towards the nodes over capacity upwards
hop_latency = "0.6 us"            # each switch
efficiency = 0.90                 # share of the wire that large messages reach
# nodes_per_leaf = 32             # above 1.0 oversubscription: nodes that meet on one switch

[provenance]
all = {{ status = "estimated", source = "{written}" }}
"""

NODE: Final = """schema = "{version}"
kind = "node"
name = "{name}-node"
extends = "{node}"
summary = "{node} with network ports of {nic}"
{calibration}
[nic]
per_direction = "{nic}"        # each port, one way
{rest}
[provenance]
all = {{ status = "estimated", source = "{written}" }}
"""

PORTS: Final = """count = {count}
affinity = "identity"             # device i uses port i
transport = "infiniband"
gpudirect = true
base = "8.4 us"
base_small = "6.6 us"
latency = "14 us"
latency_small = "2.7 us"
small_limit = "45 GB/s"
"""


def draft(name: str, *, node: str, nodes: int, nic: str | None) -> tuple[tuple[str, str], ...]:
    """The files (name, text) that make `nodes` of `node` a cluster called `name`.

    Where `nic` is not the node's own rate, a node profile that extends it comes along. Raises UsageError for a name
    that no file can have or a count below 1, ProfileError for an unknown node, a wrong unit or a missing port rate.
    """
    if not NAME.fullmatch(name):
        raise UsageError(f"{name!r} cannot be a profile's name: use letters, digits, - and _")
    if nodes < 1:
        raise UsageError(f"--nodes {nodes}: a cluster has at least 1 node")
    profile = open_library().profile(node)
    if profile.kind != "node":
        raise ProfileError(f"HW250 --from {node}: {node!r} is a {profile.kind}; name a node")
    own = profile.number("nic.per_direction") if profile.whole("nic.count") else None
    rate = own if nic is None else quantity(nic, "bandwidth")
    if rate is None:
        raise ProfileError(f"HW257 {node} has no network port; give its rate, for example --nic '400 Gb/s'")
    if rate == own:
        return ((f"{name}.toml", _cluster(name, node, nodes, nic or str(profile.value("nic.per_direction")), profile)),)
    text = nic or render(rate, "bandwidth")
    return (
        (f"{name}-node.toml", _node(name, node, text, profile)),
        (f"{name}.toml", _cluster(name, f"{name}-node", nodes, text, profile)),
    )


def _cluster(name: str, node: str, nodes: int, nic: str, profile: Profile) -> str:
    ports, devices = profile.whole("nic.count") or profile.whole("devices"), profile.whole("devices")
    topology = "rail-optimized" if ports >= devices > 1 else "flat"
    return CLUSTER.format(
        version=VERSION, name=name, node=node, nodes=nodes, nic=nic, topology=topology, written=WRITTEN
    )


def _node(name: str, node: str, nic: str, profile: Profile) -> str:
    """Devices and links stay, and so does what was measured there, unless it may hold the node's own ports too."""
    alone = not profile.whole("nic.count")
    measured = profile.texts("calibration") if alone else ()
    return NODE.format(
        version=VERSION,
        name=name,
        node=node,
        nic=nic,
        calibration=f"calibration = {json.dumps(measured)}\n" if measured else "",
        rest=PORTS.format(count=profile.whole("devices")) if alone else "",
        written=WRITTEN,
    )
