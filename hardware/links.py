"""What one rank has towards the rest of its group inside a node: one function for each topology.

Every rate is bytes per second one way, with all groups of the same shape busy at once: groups that tile the node
share switches, memory domains and host memory, and have their own links.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import combinations
from typing import Final

from fourfold.hardware.parts import Fabric, Node

EXACT_CUTS: Final = 12
"""Devices up to which all cuts of a graph are tried (4096 of them); above, only those around one device."""


def group_rate(node: Node, fabric: Fabric, group: tuple[int, ...]) -> float:
    """The rate of one of `group` (at least two devices of the node) over `fabric`, before protocol losses."""
    return RATES[fabric.topology](node, fabric, group)


def gain(fabric: Fabric, size: int) -> float:
    """The factor on an all-reduce of `size` devices where the switch reduces: linear between given sizes, else 1."""
    below = [entry for entry in fabric.gains if entry[0] <= size]
    above = [entry for entry in fabric.gains if entry[0] >= size]
    if not below:
        return 1.0
    if not above:
        return below[-1][1]
    (small, low), (large, high) = below[-1], above[0]
    return low if large == small else low + (high - low) * (size - small) / (large - small)


def graph_rate(pairs: tuple[tuple[int, int, float], ...], group: tuple[int, ...]) -> float:
    """The rate of one member when a gather among `group` uses the links between its members as well as possible.

    A set C of the n members that is cut off sends its |C| shards through the links that leave it, so
    the rate is (n - 1) min over C of (capacity out of C) / |C|.
    Source: the cut bound of optimal collective schedules (ForestColl, arXiv 2402.06787, section 4).
    """
    sizes = range(1, len(group)) if len(group) <= EXACT_CUTS else (len(group) - 1,)
    cuts = (frozenset(cut) for size in sizes for cut in combinations(group, size))
    return (len(group) - 1) * min(_leaving(pairs, cut, frozenset(group)) / len(cut) for cut in cuts)


def _switch(node: Node, fabric: Fabric, group: tuple[int, ...]) -> float:
    return fabric.rate


def _mesh(node: Node, fabric: Fabric, group: tuple[int, ...]) -> float:
    """A group of g devices drives g - 1 of the links of each."""
    return (len(group) - 1) * fabric.link


def _graph(node: Node, fabric: Fabric, group: tuple[int, ...]) -> float:
    """The links between the members; without a path among them, what a detour through others leaves."""
    rate = graph_rate(fabric.pairs, group)
    return rate if rate > 0 else min(_detour(fabric.pairs, a, b) for a, b in _ring(group))


def _pcie_tree(node: Node, fabric: Fabric, group: tuple[int, ...]) -> float:
    """A ring leaves each switch once; groups side by side share its uplink."""
    shares = [fabric.rate, _across_domains(node, fabric, group)]
    under = [switch for switch in fabric.switches if any(one in switch for one in group)]
    if len(under) > 1 and fabric.uplink is not None:
        shares += [fabric.uplink * _share(switch, group) for switch in under]
    return min(shares)


def _host_staged(node: Node, fabric: Fabric, group: tuple[int, ...]) -> float:
    """Every byte is written to host memory and read again, for all devices of the node at once."""
    shares = [fabric.rate, _across_domains(node, fabric, group)]
    if node.host_bandwidth is not None:
        shares.append(node.host_bandwidth / (2 * node.devices))
    return min(shares)


RATES: Final[dict[str, Callable[[Node, Fabric, tuple[int, ...]], float]]] = {
    "switch": _switch,
    "mesh": _mesh,
    "graph": _graph,
    "pcie-tree": _pcie_tree,
    "host-staged": _host_staged,
}


def _across_domains(node: Node, fabric: Fabric, group: tuple[int, ...]) -> float:
    domains = {node.domains[one] for one in group}
    if len(domains) == 1 or fabric.crossing is None:
        return fabric.rate
    members = ([one for one in range(node.devices) if node.domains[one] == domain] for domain in domains)
    return min(fabric.crossing * _share(domain, group) for domain in members)


def _share(place: Iterable[int], group: tuple[int, ...]) -> float:
    """The part of a place that belongs to this group when groups like it tile the place."""
    inside = tuple(place)
    return sum(one in group for one in inside) / len(inside)


def _leaving(pairs: tuple[tuple[int, int, float], ...], cut: frozenset[int], group: frozenset[int]) -> float:
    return sum(rate for a, b, rate in pairs if {a, b} <= group and (a in cut) != (b in cut))


def _ring(group: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    return tuple(zip(group, (*group[1:], group[0]), strict=True))


def _detour(pairs: tuple[tuple[int, int, float], ...], start: int, end: int) -> float:
    """The widest of the shortest ways through other devices, each of which forwards as much as it sends."""
    both_ways = (*pairs, *((b, a, rate) for a, b, rate in pairs))
    widest = {start: float("inf")}
    for hops in range(1, len(pairs) + 1):
        reached: dict[int, float] = {}
        for a, b, rate in both_ways:
            if a in widest and b not in widest:
                reached[b] = max(reached.get(b, 0.0), min(widest[a], rate))
        widest |= reached
        if end in widest:
            return widest[end] / hops
    return 0.0
