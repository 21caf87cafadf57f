"""The resolved machine: how many ranks it has, and which links a group of them crosses at what rate.

Ranks are numbered node by node: rank r is device r % node_size of node r // node_size. A Machine is a value: it
prints, compares and saves as plain JSON, so a plan that carries its snapshot needs no profile files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from fourfold.hardware import snapshot
from fourfold.hardware.links import gain, group_rate
from fourfold.hardware.machine import Calibration, Crossing, Device, Path
from fourfold.hardware.parts import Delay, Fabric, Group, Network, Node, Policy
from fourfold.hardware.wiring import links_of, wire

if TYPE_CHECKING:
    import networkx as nx

SCHEMA: Final = "fourfold.machine/1"


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine to plan for. `device` is the slowest where nodes differ; `spec` is what the user wrote.

    `assumptions` are the values it rests on that nobody measured or published: (field path, status, source).
    `latency_small`, `latency_large` and `overlap` are the uncalibrated factors of collectives.
    """

    name: str
    spec: str
    device: Device
    groups: tuple[Group, ...]
    networks: tuple[Network, ...]
    policy: Policy
    latency_small: float
    latency_large: float
    overlap: float
    calibration: Calibration | None
    assumptions: tuple[tuple[str, str, str], ...]

    @property
    def node_size(self) -> int:
        """Devices of one node; the same for every node."""
        return self.groups[0].node.devices

    @property
    def nodes(self) -> int:
        return sum(group.count for group in self.groups)

    @property
    def ranks(self) -> int:
        return self.nodes * self.node_size

    @property
    def host_memory(self) -> float:
        """Host memory of the node that has least, bytes; 0 where it is not known."""
        return min(group.node.host_memory for group in self.groups)

    @property
    def graph(self) -> nx.Graph:
        """Devices, switches, ports and leaf switches as a graph; each edge has `rate`, bytes per second one way."""
        return wire(self.groups, self.networks)

    def __str__(self) -> str:
        count = f"{self.nodes} nodes of {self.node_size}" if self.nodes > 1 else f"{self.node_size} in one node"
        return f"{self.spec}: {self.ranks} x {self.device.name} ({count})"

    def group_of(self, rank: int) -> Group:
        """The group of nodes that a rank belongs to."""
        node = rank // self.node_size
        for group in self.groups:
            if node < group.count:
                return group
            node -= group.count
        raise AssertionError(f"rank {rank} of {self.ranks}")

    def crossing(self, ranks: tuple[int, ...]) -> Crossing:
        """The links that a group of ranks crosses, with all groups of the same shape busy at once."""
        assert ranks and len(set(ranks)) == len(ranks) and 0 <= min(ranks) <= max(ranks) < self.ranks, ranks
        local: dict[int, list[int]] = {}
        for rank in sorted(ranks):
            local.setdefault(rank // self.node_size, []).append(rank % self.node_size)
        per_node = max(len(members) for members in local.values())
        return Crossing(
            size=len(ranks),
            nodes=len(local),
            per_node=per_node,
            stride=min((b - a for a, b in pairwise(sorted(ranks))), default=1),
            intra=self._intra(local) if per_node > 1 else None,
            inter=self._inter(tuple(local)) if len(local) > 1 else None,
            overlap=self.overlap,
        )

    def group(self, size: int, nodes: int) -> Crossing:
        """What `size` neighbours on `nodes` nodes would cross here, on the links of the largest group that fits."""
        per_node = -(-size // nodes)
        there, across = min(per_node, self.node_size), min(nodes, self.nodes)
        ranks = tuple(node * self.node_size + local for node in range(across) for local in range(there))
        return replace(self.crossing(ranks), size=size, nodes=nodes, per_node=per_node)

    def links(self, ranks: tuple[int, ...]) -> tuple[tuple[str, str, float], ...]:
        """Every link of `graph` on the way round a ring of these ranks: (end, end, bytes per second one way)."""
        return links_of(self.graph, ranks)

    def snapshot(self) -> dict[str, object]:
        """This machine as plain JSON values."""
        return {"schema": SCHEMA, "machine": snapshot.plain(self)}

    @classmethod
    def from_snapshot(cls, data: Mapping[str, object]) -> Machine:
        """The machine equal to the one that `snapshot` saved. Raises ProfileError HW115 for anything else."""
        return snapshot.restore(cls, data, schema=SCHEMA)

    def _intra(self, local: Mapping[int, list[int]]) -> Path:
        """The slowest node's path, each over the best of its fabrics."""
        alone = len(local) == 1
        places = {
            (group.name, tuple(members)): group.node  # equal nodes hold equal parts of most groups: each once
            for number, members in local.items()
            if len(members) > 1 and (group := self.group_of(number * self.node_size))
        }
        return min(
            (
                max((self._within(node, fabric, members, alone) for fabric in node.fabrics), key=_rate)
                for (_, members), node in places.items()
            ),
            key=_rate,
        )

    def _within(self, node: Node, fabric: Fabric, members: tuple[int, ...], alone: bool) -> Path:
        """The path inside one node; reduction in the switch helps only a group that does not leave the node."""
        rate = group_rate(node, fabric, members)
        factor = gain(fabric, len(members)) if alone else 1.0
        return self._path(fabric.name, rate, fabric.delay, factor=factor, efficiency=fabric.efficiency)

    def _inter(self, nodes: tuple[int, ...]) -> Path:
        """The path between nodes: the slowest port, under the network, its trunk and its spine."""
        groups = {group.name: group for group in (self.group_of(node * self.node_size) for node in nodes)}
        network = self._network(frozenset(groups))
        rate = min(self._port_rate(network, groups[name].node) for name in groups)
        if len(groups) > 1 and network.trunk is not None:
            # The trunk is shared by all ranks of the smaller side.
            rate = min(rate, network.trunk / min(group.count * self.node_size for group in groups.values()))
        leaves = {node // network.nodes_per_leaf if network.nodes_per_leaf else 0 for node in nodes}
        crosses_spine = len(leaves) > 1 or network.nodes_per_leaf is None
        delay = max((group.node.ports.delay for group in groups.values() if group.node.ports), key=_step)
        step = (delay.step if network.step is None else network.step) + network.hop * (3 if crosses_spine else 1)
        slow = Delay(delay.base, step, delay.base_small, delay.step_small + (step - delay.step), delay.small_limit)
        rate = rate / network.oversubscription if crosses_spine else rate
        return self._path(network.name, rate, slow, factor=1.0, efficiency=network.efficiency)

    def _network(self, names: frozenset[str]) -> Network:
        """The network that joins these groups and as few others as possible."""
        fitting = [network for network in self.networks if names <= set(network.groups)]
        assert fitting, f"no network joins {sorted(names)}"
        return min(fitting, key=lambda network: len(network.groups))

    def _port_rate(self, network: Network, node: Node) -> float:
        """What the worst-served device of a node sends out while all others do: its shares of the ports it uses."""
        assert node.ports is not None
        rate = min(node.ports.rate, network.port) if network.port is not None else node.ports.rate
        users = [port for owned in node.ports.owners for port in owned]
        worst = min(sum(rate / users.count(port) for port in owned) for owned in node.ports.owners)
        return min(worst, network.node / node.devices) if network.node is not None else worst

    def _path(self, name: str, rate: float, delay: Delay, *, factor: float, efficiency: float) -> Path:
        return Path(
            name=name,
            bandwidth=rate,
            base=delay.base,
            step=delay.step,
            base_small=delay.base_small,
            step_small=delay.step_small,
            small_limit=delay.small_limit,
            gain=factor,
            efficiency=efficiency,
            latency_small=self.latency_small,
            latency_large=self.latency_large,
        )


def _rate(path: Path) -> float:
    return path.bandwidth


def _step(delay: Delay) -> float:
    return delay.step
