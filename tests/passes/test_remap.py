"""Remaps: the greedy flow is the flow of least cost, moves keep the rules, and no step becomes slower by them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ortools.graph.python import min_cost_flow

from fourfold.hardware import load
from fourfold.hardware.errors import InfeasibleError
from fourfold.ir.batch import BatchPlan, Move, Piece
from fourfold.ir.batch_rules import Bounds, complaints
from fourfold.passes.batch import POLICIES
from fourfold.passes.batch.placing.remap import nearest, remapped
from fourfold.passes.batch.timing.exchange import exchanged
from fourfold.passes.batch.timing.terms import Layer, Terms
from fourfold.passes.batch.timing.timing import timed
from fourfold.passes.sequence.tables import Heads

MACHINE = load("dgx-h200:4")
COSTS = 1, 9
"""Of a token inside a node, and to another."""


@cache
def terms(ranks: int, zero: int, linear: float = 1e-6, capacity: int = 8192) -> Terms:
    """A small model; nodes have four ranks of the pool, as two devices make a rank."""
    layer = Layer(Heads(8, 2, 64, "bfloat16", causal=True), 4, 1.0)
    return Terms(MACHINE, Bounds(ranks, capacity, zero, 8), 2, 4, 1e-3, linear, 1e-2, (layer,), "float32")


def least_cost(surplus: Mapping[int, int], deficit: Mapping[int, int], node: int) -> tuple[int, int]:
    """(tokens, cost) of the largest flow of least cost, by a solver."""
    solver = min_cost_flow.SimpleMinCostFlow()
    first, last = 1000, 1001
    for rank, n in surplus.items():
        solver.add_arc_with_capacity_and_unit_cost(first, rank, n, 0)
        for target in deficit:
            cost = COSTS[rank // node != target // node]
            solver.add_arc_with_capacity_and_unit_cost(rank, target, n, cost)
    for rank, n in deficit.items():
        solver.add_arc_with_capacity_and_unit_cost(rank, last, n, 0)
    solver.set_node_supply(first, sum(surplus.values()))
    solver.set_node_supply(last, -sum(surplus.values()))
    assert solver.solve_max_flow_with_min_cost() == solver.OPTIMAL
    return solver.maximum_flow(), solver.optimal_cost()


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(-40, 40).filter(bool), min_size=1, max_size=12), st.integers(1, 5))
def test_the_greedy_flow_costs_the_least(differences: list[int], node: int) -> None:
    surplus = {rank: n for rank, n in enumerate(differences) if n > 0}
    deficit = {rank: -n for rank, n in enumerate(differences) if n < 0}
    found = nearest(surplus, deficit, node)
    given_away, taken = Counter[int](), Counter[int]()
    for source, target, tokens in found:
        assert tokens > 0
        given_away[source] += tokens
        taken[target] += tokens
    assert all(given_away[rank] <= n for rank, n in surplus.items()) and set(given_away) <= set(surplus)
    assert all(taken[rank] <= n for rank, n in deficit.items()) and set(taken) <= set(deficit)
    cost = sum(tokens * COSTS[source // node != target // node] for source, target, tokens in found)
    expected = least_cost(surplus, deficit, node) if surplus and deficit else (0, 0)
    assert (sum(given_away.values()), cost) == expected


LENGTHS = st.lists(st.one_of(st.integers(1, 400), st.sampled_from((3000, 8000, 20000))), min_size=1, max_size=30)


@settings(max_examples=25, deadline=None)
@given(LENGTHS, st.sampled_from((2, 3, 8)), st.sampled_from((1, 3)), st.sampled_from((1e-8, 1e-6, 1e-5)))
def test_a_remap_keeps_the_rules_and_slows_nothing(lengths: list[int], ranks: int, zero: int, linear: float) -> None:
    given_terms = terms(ranks, zero, linear)
    for name in ("pack", "bytescale", "zeppelin"):
        try:
            batch = replace(POLICIES[name](lengths, given_terms), moves=())
        except InfeasibleError:
            continue
        after = remapped(batch, given_terms)
        assert complaints(after, given_terms.bounds) == ()
        assert sum(after.run.values()) == sum(after.held.values()) == sum(lengths)
        assert replace(after, moves=()) == batch
        assert max(after.run.values()) <= max(batch.held.values())
        seconds = timed(after, given_terms).seconds
        assert seconds < timed(batch, given_terms).seconds if after.moves else after == batch


UNEVEN = BatchPlan(
    "by hand",
    (8000, 2000, 6000),
    8,
    8192,
    (Piece(0, 0, 8000, 0, (0,)), Piece(1, 0, 2000, 0, (1,)), Piece(2, 0, 6000, 0, (4,))),
)


@pytest.mark.parametrize("zero", (1, 3))
def test_tokens_are_evened_out_where_regions_take_long(zero: int) -> None:
    found = remapped(UNEVEN, terms(8, zero, 1e-4))
    assert found.moves == (Move(0, 0, 1, 2666), Move(0, 4, 1, 666))
    assert max(found.run.values()) - min(found.run.values()) <= 2
    assert remapped(UNEVEN, terms(8, zero, 1e-10)).moves == (), "moves cost more than they save"


def test_a_rank_that_runs_nothing_takes_nothing() -> None:
    found = remapped(UNEVEN, terms(8, 3, 1e-4))
    assert {move.target for move in found.moves} <= {0, 1, 4}


def test_ranks_that_move_take_the_longest_attention_and_the_most_tokens() -> None:
    """By hand: two ranks, one of long attention and many tokens, one of neither."""
    given_terms = terms(2, 1, 1e-5)
    batch = BatchPlan("by hand", (6000, 1000), 2, 8192, (Piece(0, 0, 6000, 0, (0,)), Piece(1, 0, 1000, 0, (1,))))
    moved = replace(batch, moves=(Move(0, 0, 1, 2500),))
    slowest = exchanged(moved.moves, given_terms)[0]
    expected = given_terms.alone(6000) + given_terms.fixed + 3500 * given_terms.linear + slowest
    assert timed(moved, given_terms).seconds == pytest.approx(given_terms.once + expected)
    busy = timed(moved, given_terms).busy
    assert busy[0] == pytest.approx(expected)
    assert busy[1] == pytest.approx(expected - given_terms.alone(6000) + given_terms.alone(1000))


def test_an_exchange_costs_its_bytes_over_the_links_it_crosses() -> None:
    """Eight query and two key heads of 64 in bfloat16: 1536 bytes in, 1024 out, four attentions, forward and back."""
    given_terms = terms(8, 1)
    many = 1 << 26
    near, far = (exchanged((Move(0, 0, target, many),), given_terms)[0] for target in (1, 4))
    expected = 4 * 2 * (1536 + 1024) * many
    inside, across = MACHINE.group(2, 1).intra, MACHINE.group(2, 2).inter
    assert inside is not None and across is not None
    assert far == pytest.approx(expected / (across.bandwidth * across.efficiency), rel=0.01)
    assert far > 4 * near, "ports are slower than the switch"
    both = exchanged((Move(0, 0, 1, many), Move(0, 0, 4, many)), given_terms)
    assert both[0] == pytest.approx(far), "the two kinds of links carry their parts at once"
    again = replace(given_terms, layers=tuple(replace(layer, forwards=2.0) for layer in given_terms.layers))
    assert exchanged((Move(0, 0, 4, many),), again)[0] == pytest.approx(1.5 * far), "what runs again moves again"
