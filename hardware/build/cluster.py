"""The networks of a cluster, as its profile gives them or as the ports of one kind of node imply."""

from __future__ import annotations

from typing import Final

from fourfold.hardware.build.reading import either
from fourfold.hardware.parts import Network, Node, Policy
from fourfold.hardware.profile import Profile

# Share of the wire that large collectives reached over the networks published so far: 0.73 (EFA) to 0.91 (NDR).
EFFICIENCY: Final = 0.9
HOP: Final = 0.6e-6


def networks_of(profile: Profile) -> tuple[Network, ...]:
    """The networks of a checked cluster profile."""
    names = tuple(row.partition(".")[2] for row in profile.rows("group"))
    return tuple(_network(profile, row, names) for row in profile.rows("network"))


def policy_of(profile: Profile) -> Policy:
    """What the cluster allows across groups; everything, where it says nothing."""
    allowed = {
        key: profile.value(f"policy.{key}_across_groups") is not False
        for key in ("collectives", "pipeline", "data_parallel")
    }
    return Policy(**allowed)


def default_network(node: Node) -> Network:
    """The network that equal nodes are given when none is described: their ports at full rate, nothing shared."""
    assert node.ports is not None
    own = len({port for owned in node.ports.owners for port in owned}) >= node.devices
    return Network(
        name="default",
        groups=(node.name,),
        topology="rail-optimized" if own else "flat",
        port=node.ports.rate,
        node=None,
        trunk=None,
        oversubscription=1.0,
        nodes_per_leaf=None,
        hop=HOP,
        step=None,
        efficiency=EFFICIENCY,
    )


def _network(profile: Profile, row: str, names: tuple[str, ...]) -> Network:
    return Network(
        name=row.partition(".")[2],
        groups=profile.texts(f"{row}.groups") or names,
        topology=profile.text(f"{row}.topology", "flat"),
        port=profile.number(f"{row}.per_direction"),
        node=profile.number(f"{row}.per_node_per_direction"),
        trunk=profile.number(f"{row}.total_per_direction"),
        oversubscription=either(profile, f"{row}.oversubscription", 1.0),
        nodes_per_leaf=profile.whole(f"{row}.nodes_per_leaf") or None,
        hop=either(profile, f"{row}.hop_latency", 0.0),
        step=profile.number(f"{row}.latency"),
        efficiency=either(profile, f"{row}.efficiency", EFFICIENCY),
    )
