"""Which links a group of ranks crosses, and at what rate: switch, mesh, graph, PCIe tree, host, ports and networks."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import networkx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold.hardware import load
from fourfold.hardware.links import graph_rate
from fourfold.hardware.machine import Path as Link

Write = Callable[..., Path]
GB = 1e9


def intra(machine: str, ranks: tuple[int, ...]) -> Link:
    path = load(machine).crossing(ranks).intra
    assert path is not None
    return path


def inter(machine: str, ranks: tuple[int, ...]) -> Link:
    path = load(machine).crossing(ranks).inter
    assert path is not None
    return path


def test_shape_of_a_crossing() -> None:
    machine = load("dgx-h200:4")
    found = machine.crossing(tuple(range(0, 32, 8)))
    assert (found.size, found.nodes, found.per_node, found.stride) == (4, 4, 1, 8)
    assert found.intra is None and found.inter is not None
    found = machine.crossing((0, 1, 2, 8))
    assert (found.size, found.nodes, found.per_node, found.stride) == (4, 2, 3, 1)
    found = machine.crossing((5,))
    assert (found.size, found.nodes, found.intra, found.inter) == (1, 1, None, None)


def test_a_switch_gives_every_group_the_full_rate() -> None:
    assert {intra("dgx-h200", tuple(range(size))).bandwidth for size in (2, 3, 8)} == {450 * GB}
    assert intra("dgx-h200", (0, 7)).bandwidth == 450 * GB


def test_the_switch_reduces_for_large_groups_inside_one_node_only() -> None:
    gains = [intra("dgx-h200", tuple(range(size))).gain for size in range(2, 9)]
    assert gains == [1.0, 1.0, 1.0, 1.14, 1.19, 1.26, 1.29]
    assert intra("dgx-h200:2", tuple(range(16))).gain == 1.0
    assert intra("hgx-h800", tuple(range(6))).gain == 1.0


def test_a_mesh_gives_a_group_its_own_links() -> None:
    assert [intra("mi300x-8", tuple(range(size))).bandwidth / GB for size in (2, 4, 8)] == [64, 192, 448]
    assert intra("mi300x-8@4", (0, 1, 2, 3)).bandwidth == 192 * GB


def test_mesh_busbw_is_what_was_published() -> None:
    for size, published in ((2, 47.7), (8, 312.9)):
        path = intra("mi300x-8", tuple(range(size)))
        assert path.bandwidth * path.efficiency == pytest.approx(published * GB, rel=0.08)


def test_a_cube_mesh() -> None:
    assert intra("dgx1-v100-32gb", (0, 3)).bandwidth == 50 * GB
    assert intra("dgx1-v100-32gb", (0, 1)).bandwidth == 25 * GB
    assert intra("dgx1-v100-32gb", (0, 5)).bandwidth == 12.5 * GB  # no link: through 1, which forwards
    path = intra("dgx1-v100-32gb", tuple(range(8)))
    assert path.bandwidth * path.efficiency == pytest.approx(120 * GB)  # NCCL's own count: 6 links of 20


def test_an_uneven_graph_is_bound_by_its_worst_cut() -> None:
    assert intra("frontier-mi250x", (0, 1)).bandwidth == 200 * GB
    assert intra("frontier-mi250x", (0, 2)).bandwidth == 50 * GB
    assert intra("frontier-mi250x", tuple(range(8))).bandwidth < 300 * GB


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 6).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.integers(1, 9), min_size=n, max_size=n))))
def test_a_graph_that_is_a_ring_gives_what_its_two_weakest_links_allow(ring: tuple[int, list[int]]) -> None:
    size, rates = ring
    pairs = tuple((index, (index + 1) % size, float(rate)) for index, rate in enumerate(rates))
    weakest = min(a + b for a, b in combinations(rates, 2))
    found = graph_rate(pairs, tuple(range(size)))
    # A cut takes two links of a ring, and at most size - 1 shards leave through them.
    assert weakest <= found <= (size - 1) * weakest


def test_a_pcie_tree_shares_its_uplinks() -> None:
    assert intra("l40s-server-8", (0, 1, 2, 3)).bandwidth == 25 * GB
    assert intra("l40s-server-8", tuple(range(8))).bandwidth == 22 * GB  # between the sockets
    assert intra("l40s-server-8", (0, 4)).bandwidth == 5.5 * GB  # four such pairs at once
    assert intra("l40s-server-8", (0, 1, 4, 5)).bandwidth == 11 * GB


def test_staged_traffic_shares_host_memory() -> None:
    assert intra("rtx4090-workstation-2", (0, 1)).bandwidth == 13 * GB
    assert intra("rtx4090-server-8", (0, 1)).bandwidth == 300 / 16 * GB
    assert intra("rtx4090-server-8", tuple(range(8))).bandwidth == 10 * GB
    assert intra("cpu-gloo@2", (0, 1)).bandwidth == 0.6 * GB


def test_one_port_each_has_no_contention() -> None:
    assert inter("dgx-h200:2", (0, 8)).bandwidth == 50 * GB
    assert inter("dgx-h200:2", tuple(range(16))).bandwidth == 50 * GB


def test_shared_ports_divide(write: Write) -> None:
    assert inter("frontier-mi250x:2", (0, 8)).bandwidth == 12.5 * GB  # two GCDs a port
    assert inter("l40s-server-8:2", (0, 8)).bandwidth == 6.25 * GB  # four GPUs a port
    assert inter("rtx4090-server-8:2", (0, 8)).bandwidth == 1.25 * GB / 8
    write("node", "p5", 'extends = "dgx-h100"\n[nic]\ncount = 32\nper_direction = "100 Gb/s"\naffinity = "identity"\n')
    assert inter("p5:2", (0, 8)).bandwidth == 50 * GB  # four ports each


def test_networks_cap_the_ports(write: Write) -> None:
    leaf = "[network]\noversubscription = 2.0\nnodes_per_leaf = 2\n"
    write("cluster", "thin", f'extends = "h200-x4"\n{leaf}')
    assert inter("thin", (0, 8)).bandwidth == 50 * GB  # under one leaf
    assert inter("thin", (0, 16)).bandwidth == 25 * GB  # over the spine
    assert inter("thin", (0, 16)).step > inter("thin", (0, 8)).step
    write("cluster", "slow", 'extends = "h200-x4"\n[network]\nper_direction = "100 Gb/s"\n')
    assert inter("slow", (0, 8)).bandwidth == 12.5 * GB
    write("cluster", "narrow", 'extends = "h200-x4"\n[network]\nper_node_per_direction = "100 Gb/s"\n')
    assert inter("narrow", (0, 8)).bandwidth == 12.5 * GB / 8


def test_a_mixed_cluster_uses_the_network_of_the_groups_it_joins() -> None:
    assert inter("h100-a100-mixed", (0, 8)).name == "ndr"
    assert inter("h100-a100-mixed", (16, 24)).name == "hdr"
    trunk = inter("h100-a100-mixed", (0, 16))
    assert (trunk.name, trunk.step, trunk.bandwidth) == ("trunk", 40e-6, 12.5 * GB / 8)
    machine = load("h100-a100-mixed")
    assert machine.device.name == "nvidia-a100-sxm4-80gb" and "fp8" not in machine.device.peak
    assert machine.device.usable == min(load("dgx-h100").device.usable, load("dgx-a100-80gb").device.usable)
    assert (machine.group_of(0).name, machine.group_of(16).name, machine.ranks) == ("fast", "old", 48)
    assert not machine.policy.collectives


@pytest.mark.parametrize("name", ["dgx-h200", "mi300x-8", "h200-2", "gb200-nvl72@8", "rtx4090-workstation-2"])
def test_a_pair_gets_what_flows_between_them_in_the_graph_at_most(name: str) -> None:
    machine = load(name)
    direct = networkx.Graph(machine.graph)
    flow = networkx.maximum_flow_value(direct, "rank 0", "rank 1", capacity="rate")
    crossing = machine.crossing((0, 1))
    assert crossing.intra is not None and crossing.intra.bandwidth <= flow


@pytest.mark.parametrize("name", ["dgx-h200:2", "frontier-mi250x:2", "h100-a100-mixed", "p100-x64", "l40s-server-8"])
def test_the_graph_joins_all_ranks(name: str) -> None:
    machine = load(name)
    graph = machine.graph
    assert networkx.is_connected(graph)
    assert sum(str(node).startswith("rank ") for node in graph) == machine.ranks
    assert all(rate > 0 for _, _, rate in graph.edges(data="rate"))


def test_links_of_a_group() -> None:
    links = load("dgx-h200:2").links((0, 8))
    assert ("default rail 0 leaf 0", "node 0 port 0", 50 * GB) in links
    assert {end for link in links for end in link[:2]} >= {"rank 0", "rank 8", "node 1 port 0"}
    assert load("mi300x-8").links((0, 1, 2)) == (
        ("rank 0", "rank 1", 64 * GB),
        ("rank 1", "rank 2", 64 * GB),
        ("rank 0", "rank 2", 64 * GB),
    )


def test_a_crossing_is_the_same_whatever_the_order_of_the_ranks() -> None:
    machine = load("h100-a100-mixed")
    assert machine.crossing((17, 3, 40)) == machine.crossing((40, 17, 3))


def test_a_measured_group_is_compared_on_its_own_links() -> None:
    machine = load("mi300x-8:2")
    assert machine.group(4, 1) == machine.crossing((0, 1, 2, 3))
    assert machine.group(4, 2) == machine.crossing((0, 1, 8, 9))
    larger = machine.group(32, 4)
    assert (larger.size, larger.nodes, larger.per_node) == (32, 4, 8)
    assert larger.inter == machine.crossing(tuple(range(16))).inter
