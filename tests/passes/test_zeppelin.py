"""Zones, the two levels of the partition, the order of a rank's queues and what hides what in their price."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold.hardware import load
from fourfold.hardware.errors import InfeasibleError
from fourfold.ir.batch import BatchPlan, Piece
from fourfold.ir.batch_rules import Bounds
from fourfold.passes.batch import POLICIES
from fourfold.passes.batch.placing.hierarchy import Starts, dealt, over_nodes, over_ranks
from fourfold.passes.batch.placing.zones import Zones, crossing, useful, zones
from fourfold.passes.batch.timing.clock import attention, joined
from fourfold.passes.batch.timing.terms import Layer, Terms
from fourfold.passes.batch.timing.timing import timed
from fourfold.passes.sequence.routing import Routing, routing
from fourfold.passes.sequence.tables import Heads

MACHINE = load("dgx-h200:4")


@cache
def terms(ranks: int, capacity: int = 8192, routing: Routing | None = None, zero: int = 1) -> Terms:
    """A model whose keys are as wide as its queries, so that messages are long."""
    layer = Layer(Heads(32, 32, 128, "bfloat16", causal=True), 4, 1.0)
    found = Terms(MACHINE, Bounds(ranks, capacity, zero, 32), 1, 8, 1e-3, 1e-6, 1e-2, (layer,), "bfloat16")
    return found if routing is None else replace(found, routing=routing)


def test_zones_follow_each_other() -> None:
    found = zones(terms(32))
    assert 1000 < found.intra < found.inter < inf
    assert [found.of(n) for n in (1, int(found.intra), int(found.inter) - 1, int(found.inter))] == [
        "local",
        "intra",
        "intra",
        "inter",
    ]
    assert zones(terms(8)) == Zones(found.intra, inf)
    assert zones(terms(1)) == Zones(inf, inf)


def test_at_the_crossing_attention_takes_as_long_as_its_messages() -> None:
    for ranks in (2, 16):
        length = int(crossing(terms(32), ranks))
        sent = terms(32).travelled(length, ranks, "ring")
        assert useful(length, ranks, terms(32)) == pytest.approx(sent, rel=0.05)
        assert terms(32).travelled(4 * length, ranks, "ring") < useful(4 * length, ranks, terms(32)) / 3


def test_more_ports_need_shorter_sequences() -> None:
    plain, routed = zones(terms(32)), zones(terms(32, routing=Routing(proxies=8.0)))
    assert routed.intra == plain.intra and routed.intra <= routed.inter < plain.inter


def test_a_routed_message_is_scattered_sent_and_gathered() -> None:
    links = MACHINE.group(16, 2)
    assert links.inter is not None and links.intra is not None
    for x in (1.0, 2.0, 8.0):
        found = Routing(proxies=x).routed(links).inter
        assert found is not None
        b_inter, b_intra = (1.0 / (path.bandwidth * path.efficiency) for path in (links.inter, links.intra))
        seconds = max(b_inter / x, b_intra * (x - 1) / x)
        assert 1.0 / (found.bandwidth * found.efficiency) == pytest.approx(min(b_inter, seconds))
    inside = MACHINE.group(8, 1)
    assert Routing(proxies=8.0).routed(inside) == inside


@pytest.mark.parametrize(
    ("machine", "tensor", "share", "proxies"),
    (
        ("dgx-h200:4", 1, 1.0, 8.0),
        ("dgx-h200:4", 4, 1.0, 2.0),
        ("dgx-h200:4", 8, 1.0, 1.0),
        ("frontier-mi250x:2", 1, 2.0, 4.0),
        ("frontier-mi250x:2", 2, 1.0, 4.0),
    ),
)
def test_idle_ports_are_counted(machine: str, tensor: int, share: float, proxies: float) -> None:
    """Eight ports for eight devices, and four for eight."""
    found = load(machine)
    assert routing(found, tensor, proxies=True) == Routing(share, proxies)
    assert routing(found, tensor, proxies=False) == Routing(share, 1.0)


SOME = st.lists(st.integers(0, 500), min_size=1, max_size=40)


@settings(max_examples=150, deadline=None)
@given(SOME, st.lists(st.integers(1, 8), min_size=1, max_size=5), st.integers(1, 400), st.integers(1, 600))
def test_the_loop_over_nodes_ends_with_room_or_everything_shared(
    lengths: list[int], sizes: list[int], room: int, start: int
) -> None:
    given_lengths = {i: n for i, n in enumerate(lengths) if n}
    found = over_nodes(given_lengths, sizes, room, start)
    if found is None:
        assert sum(lengths) > 0.5 * room * sum(sizes), "shares of all nodes fit whatever is less"
        return
    assert set(found) == set(given_lengths)
    held = [0.0] * len(sizes)
    for i, numbers in found.items():
        for n in numbers:
            held[n] += lengths[i] * sizes[n] / sum(sizes[m] for m in numbers)
    assert all(tokens <= room * size + 1e-6 for tokens, size in zip(held, sizes, strict=True))


@settings(max_examples=150, deadline=None)
@given(SOME, st.integers(1, 8), st.integers(1, 400), st.integers(1, 600))
def test_the_loop_over_ranks_ends_with_room_or_everything_shared(
    lengths: list[int], ranks: int, room: int, start: int
) -> None:
    given_lengths = {i: n for i, n in enumerate(lengths) if n}
    work = {i: float(n * n) for i, n in given_lengths.items()}
    found = over_ranks(given_lengths, work, dict.fromkeys(range(ranks), float(room)), start)
    assert set(found) == set(given_lengths)
    held = dict.fromkeys(range(ranks), 0.0)
    for i, own in found.items():
        for rank in own:
            held[rank] += lengths[i] / len(own)
    everywhere = all(own == tuple(range(ranks)) for own in found.values())
    assert everywhere or max(held.values()) <= room + 1e-6


def test_what_is_long_spans_nodes_what_is_short_stays() -> None:
    lengths = {0: 100_000, 1: 20_000, **dict.fromkeys(range(2, 40), 1000)}
    found = dealt(lengths, 8190, Starts(65_000, 8191), terms(32))
    assert found is not None
    assert len(found[0]) % 8 == 0 and len(found[0]) >= 16
    assert 3 <= len(found[1]) <= 8 and len({rank // 8 for rank in found[1]}) == 1
    assert all(len(found[i]) == 1 for i in range(2, 40))
    lower = dealt(lengths, 8190, Starts(10_000, 8191), terms(32))
    assert lower is not None and len(lower[1]) >= 16


def test_queues_run_over_nodes_then_inside_then_alone() -> None:
    batch = POLICIES["zeppelin"]([100_000, 20_000, 15_000] + [1000] * 60, terms(32))
    kinds = {}
    for team in batch.teams:
        nodes = {rank // 8 for rank in team.ranks}
        kinds.setdefault(team.micro_step, []).append(2 if len(nodes) > 1 else int(len(team.ranks) > 1))
    assert {kind for each in kinds.values() for kind in each} == {0, 1, 2}
    assert all(each == sorted(each, reverse=True) for each in kinds.values())


def test_what_a_rank_has_alone_fills_the_waits_of_what_it_shares() -> None:
    given_terms = terms(16)

    def seconds(*alone: int) -> float:
        pieces = [Piece(0, 0, 4000, 0, tuple(range(16)), "ring")]
        pieces += [Piece(i + 1, 0, n, 0, (0,)) for i, n in enumerate(alone)]
        batch = BatchPlan("by hand", (4000, *alone), 16, 8192, tuple(pieces))
        tokens = batch.held[0, 0] * given_terms.linear
        return timed(batch, given_terms).seconds - given_terms.once - given_terms.fixed - tokens

    (team,) = BatchPlan("by hand", (4000,), 16, 8192, (Piece(0, 0, 4000, 0, tuple(range(16)), "ring"),)).teams
    total, waits = attention(team, given_terms)
    assert 0.0 < waits < total
    assert given_terms.alone(1000) < waits < given_terms.alone(8000)
    assert seconds() == pytest.approx(total)
    assert seconds(1000) == pytest.approx(total)
    assert seconds(8000) == pytest.approx(total - waits + given_terms.alone(8000))


def test_a_batch_that_the_pool_cannot_hold_is_refused_by_name() -> None:
    with pytest.raises(InfeasibleError, match="zeppelin cannot place sequence 1 of 200,000 tokens"):
        POLICIES["zeppelin"]([5, 200_000], terms(16))


@given(st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=4), max_size=8))
def test_joined_groups_are_the_connected_ones(groups: list[list[int]]) -> None:
    found = joined(groups)
    assert sorted(rank for each in found for rank in each) == sorted({rank for each in groups for rank in each})
    for each in groups:
        assert sum(bool(set(each) & set(one)) for one in found) == 1
    for one in found:
        for part in range(1, len(one)):
            left = set(one[:part])
            assert any(left & set(each) and set(each) - left & set(one) for each in groups)
