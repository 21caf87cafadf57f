"""Slow ranks get less: against every exchange tried, for any placement and any paces."""

from __future__ import annotations

from functools import cache
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold.hardware import load
from fourfold.hardware.errors import InfeasibleError
from fourfold.ir.batch import BatchPlan, Move, Offload, Piece
from fourfold.ir.batch_rules import Bounds, complaints
from fourfold.passes.batch import POLICIES
from fourfold.passes.batch.placing.pacing import exchanged, paced
from fourfold.passes.batch.timing.terms import Layer, Terms
from fourfold.passes.batch.timing.timing import timed
from fourfold.passes.sequence.tables import Heads

MACHINE = load("dgx-h200:8")
LENGTHS = st.lists(st.integers(1, 900), min_size=1, max_size=24)
PACE = st.floats(0.5, 2.0)


@cache
def terms(ranks: int, node: int, zero: int) -> Terms:
    layer = Layer(Heads(8, 2, 64, "bfloat16", causal=True), 4, 1.0)
    bounds = Bounds(ranks, 1024, zero, 8, spare=0.5)
    return Terms(MACHINE, bounds, 1, node, 1e-3, 1e-6, 1e-2, (layer,), "float32")


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.sampled_from((4, 8)), st.sampled_from((1, 3)), st.sampled_from(sorted(POLICIES)), st.data())
def test_a_paced_placement_is_sound_and_never_slower(
    lengths: list[int], node: int, zero: int, policy: str, data: st.DataObject
) -> None:
    known = terms(8, node, zero)
    paces = data.draw(st.tuples(*[PACE] * 8))
    try:
        batch = POLICIES[policy](lengths, known)
    except InfeasibleError:
        return
    found = paced(batch, known, paces)
    assert complaints(found, known.bounds) == ()
    assert timed(found, known, paces).seconds <= timed(batch, known, paces).seconds
    for before, after in zip(batch.pieces, found.pieces, strict=True):
        assert sorted(rank // node for rank in before.ranks) == sorted(rank // node for rank in after.ranks)
    assert paced(batch, known, (1.25,) * 8) is batch and paced(batch, known, ()) is batch


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.tuples(*[PACE] * 4))
def test_no_exchange_of_packed_ranks_is_faster(lengths: list[int], paces: tuple[float, ...]) -> None:
    known = terms(4, 4, 1)
    batch = POLICIES["pack"](lengths, known)
    best = min(timed(exchanged(batch, dict(enumerate(p))), known, paces).seconds for p in permutations(range(4)))
    assert timed(paced(batch, known, paces), known, paces).seconds == pytest.approx(best, rel=1e-12)


def test_what_belongs_to_a_rank_goes_with_it() -> None:
    pieces = (Piece(0, 0, 900, 0, (0,)), Piece(1, 0, 100, 0, (1,)), Piece(2, 0, 1000, 0, (2, 3), "ring"))
    batch = BatchPlan("by hand", (900, 100, 1000), 4, 1024, pieces, 1, (Move(0, 0, 1, 50),), (Offload(0, 0, 0.25),))
    found = exchanged(batch, {0: 3, 1: 1, 2: 0, 3: 2})
    assert [piece.ranks for piece in found.pieces] == [(3,), (1,), (0, 2)]
    assert found.moves == (Move(0, 3, 1, 50),) and found.offloads == (Offload(0, 3, 0.25),)


def test_a_slow_rank_slows_those_that_wait_for_it() -> None:
    known = terms(4, 4, 1)
    shared = BatchPlan("by hand", (1000,), 4, 1024, (Piece(0, 0, 1000, 0, (0, 1), "ring"),))
    even, slow = timed(shared, known).seconds - known.once, timed(shared, known, (1.0, 2.0, 1.0, 1.0)).seconds
    assert slow - known.once == pytest.approx(2 * even, rel=1e-3)
    assert [piece.ranks for piece in paced(shared, known, (1.0, 2.0, 1.5, 1.0)).pieces] == [(0, 3)]
