"""The machine drawn as a graph of devices, switches, ports and leaf switches.

The one place that needs networkx, imported when the graph is asked for: commands that only read profiles start
without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

from fourfold.hardware.parts import Fabric, Group, Network, Node, Ports

if TYPE_CHECKING:
    import networkx as nx

Link = tuple[str, str, float]


def wire(groups: tuple[Group, ...], networks: tuple[Network, ...]) -> nx.Graph:
    """The graph: nodes are names such as `rank 3` and `node 0 nvswitch`; edges carry `rate`, bytes/s one way."""
    import networkx

    graph = networkx.Graph()
    for a, b, rate in _links(groups, networks):
        graph.add_edge(a, b, rate=rate + (graph.edges[a, b]["rate"] if graph.has_edge(a, b) else 0.0))
    graph.add_nodes_from(f"rank {rank}" for rank in range(sum(group.count * group.node.devices for group in groups)))
    return graph


def links_of(graph: nx.Graph, ranks: tuple[int, ...]) -> tuple[Link, ...]:
    """The links on the shortest ways from each rank to the next round the ring, without repeats."""
    import networkx

    found: dict[tuple[str, str], float] = {}
    for a, b in zip(ranks, (*ranks[1:], ranks[0]), strict=True):
        way = networkx.shortest_path(graph, f"rank {a}", f"rank {b}")
        for one, other in pairwise(way):
            found[(min(one, other), max(one, other))] = graph.edges[one, other]["rate"]
    return tuple((one, other, rate) for (one, other), rate in found.items())


def _links(groups: tuple[Group, ...], networks: tuple[Network, ...]) -> Iterator[Link]:
    first = 0
    for group in groups:
        for number in range(first, first + group.count):
            yield from _node(group.node, number)
            for network in networks:
                if group.name in network.groups and group.node.ports is not None:
                    yield from _uplinks(network, group.node.ports, number)
        first += group.count


def _node(node: Node, number: int) -> Iterator[Link]:
    ranks = [f"rank {number * node.devices + device}" for device in range(node.devices)]
    for fabric in node.fabrics:
        yield from _fabric(fabric, ranks, f"node {number} {fabric.name}", node.domains)
    for rank, owned in zip(ranks, node.ports.owners if node.ports else (), strict=False):
        yield from ((rank, f"node {number} port {port}", node.ports.rate if node.ports else 0.0) for port in owned)


def _fabric(fabric: Fabric, ranks: list[str], hub: str, domains: tuple[int, ...]) -> Iterator[Link]:
    if fabric.topology == "mesh":
        yield from ((a, b, fabric.link) for index, a in enumerate(ranks) for b in ranks[index + 1 :])
    elif fabric.topology == "graph":
        yield from ((ranks[a], ranks[b], rate) for a, b, rate in fabric.pairs)
    elif fabric.topology == "switch":
        yield from ((rank, hub, fabric.rate) for rank in ranks)
    else:
        yield from _tree(fabric, ranks, hub, domains)


def _tree(fabric: Fabric, ranks: list[str], hub: str, domains: tuple[int, ...]) -> Iterator[Link]:
    """Devices under PCIe switches under memory domains; a level that the profile does not name is left out."""
    switches = fabric.switches or tuple((one,) for one in range(len(ranks)))
    for index, under in enumerate(switches):
        root = f"{hub} domain {domains[under[0]]}"
        if len(under) > 1:
            yield from ((ranks[one], f"{hub} switch {index}", fabric.rate) for one in under)
            yield f"{hub} switch {index}", root, fabric.uplink or fabric.rate
        else:
            yield ranks[under[0]], root, fabric.rate
    for domain in sorted(set(domains))[1:]:
        yield f"{hub} domain {domains[0]}", f"{hub} domain {domain}", fabric.crossing or fabric.rate


def _uplinks(network: Network, ports: Ports, number: int) -> Iterator[Link]:
    """Ports meet on leaf switches, one for each port number where the network is rail-optimised; leaves meet above."""
    leaf = number // network.nodes_per_leaf if network.nodes_per_leaf else 0
    rate = min(ports.rate, network.port) if network.port is not None else ports.rate
    distinct = sorted({port for owned in ports.owners for port in owned})
    if network.node is not None:
        rate = min(rate, network.node / len(distinct))
    for port in distinct:
        rail = f" rail {port}" if network.topology == "rail-optimized" else ""
        switch = f"{network.name}{rail} leaf {leaf}"
        yield f"node {number} port {port}", switch, rate
        yield switch, f"{network.name} spine", rate / network.oversubscription
