"""Prices of batch plans: as an obvious version has them, part by part, and never below the bound."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fourfold.hardware import load
from fourfold.ir.batch import BatchPlan, Move, Offload, Piece
from fourfold.ir.batch_rules import CHUNKED, Bounds, complaints
from fourfold.passes.batch.timing.bounding import bound
from fourfold.passes.batch.timing.clock import attention
from fourfold.passes.batch.timing.exchange import exchanged
from fourfold.passes.batch.timing.terms import SLOWED, Layer, Terms
from fourfold.passes.batch.timing.timing import timed
from fourfold.passes.sequence.tables import Heads


@cache
def terms(ranks: int = 4, zero: int = 1, heads: int = 8, node: int = 8, **more: float) -> Terms:
    """A small model whose host link is fast."""
    layer = Layer(Heads(heads, 2, 64, "bfloat16", causal=True), 4, 1.0)
    bounds = Bounds(ranks, 1024, zero, heads, state=0.1, spare=0.5)
    given: Mapping[str, float] = {"forward": 0.3, "kept": 1e4, "host": 5e10, **more}
    machine = load(f"dgx-h200:{-(-max(ranks, 16) // 8)}")
    return Terms(machine, bounds, 1, node, 1e-3, 1e-6, 1e-2, (layer,), "float32", **given)  # type: ignore[arg-type]


@st.composite
def placements(draw: st.DrawFn) -> tuple[BatchPlan, int]:
    """Sequences on any ranks in any order, whole or in chunks, by any method that may; and a ZeRO stage."""
    ranks, pieces, lengths = draw(st.integers(1, 12)), [], []
    for i in range(draw(st.integers(1, 6))):
        length, n = draw(st.integers(1, 3000)), draw(st.integers(1, ranks))
        first = draw(st.integers(0, ranks - n))
        method = "whole" if n == 1 else draw(st.sampled_from(terms(ranks).methods(n)))
        cuts = (
            sorted({0, length, *draw(st.lists(st.integers(1, length), max_size=2))})
            if method in ("whole", *CHUNKED)
            else [0, length]
        )
        steps = sorted(draw(st.sets(st.integers(0, 9), min_size=len(cuts) - 1, max_size=len(cuts) - 1)))
        where = tuple(range(first, first + n))
        pieces += [Piece(i, a, b, s, where, method) for a, b, s in zip(cuts, cuts[1:], steps, strict=False)]
        lengths.append(length)
    retained = draw(st.integers(1, 3))
    return BatchPlan("any", tuple(lengths), ranks, 1024, tuple(pieces), retained), draw(st.sampled_from((1, 3)))


def obvious(batch: BatchPlan, given: Terms) -> float:
    """Clocks of ranks in plain loops; chunks that run again left out."""
    clock = [0.0] * batch.ranks
    for step in range(batch.micro_steps):
        teams = [team for team in batch.teams if team.micro_step == step]
        own = [
            given.fixed + given.linear * batch.held[r, step] if (r, step) in batch.held else 0.0
            for r in range(batch.ranks)
        ]
        for rank in range(batch.ranks):
            mine = [(team, *attention(team, given)) for team in teams if rank in team.ranks]
            whole = [team.pieces[0].tokens == batch.lengths[team.pieces[0].sequence] for team, _, _ in mine]
            filled = sum(waits for (_, _, waits), is_whole in zip(mine, whole, strict=True) if is_whole)
            alone = sum(seconds for team, seconds, _ in mine if len(team.ranks) == 1)
            own[rank] += sum(seconds for _, seconds, _ in mine) - min(filled, alone)
        together = [{rank} for rank in range(batch.ranks)]
        for team in teams:
            touched = [one for one in together if one & set(team.ranks)]
            together = [one for one in together if one not in touched] + [set().union(*touched)]
        for ranks in [set(range(batch.ranks))] if given.bounds.zero > 1 else together:
            end = max(clock[r] for r in ranks) + max(own[r] for r in ranks)
            for rank in ranks:
                clock[rank] = end
    return given.once + max(clock)


@settings(max_examples=60, deadline=None)
@given(placements())
def test_time_is_that_of_plain_clocks_and_never_below_the_bound(case: tuple[BatchPlan, int]) -> None:
    batch, zero = case
    given_terms = terms(batch.ranks, zero)
    kept = replace(batch, retained=9)
    assert timed(kept, given_terms).seconds == pytest.approx(obvious(kept, given_terms))
    assume(not complaints(batch, given_terms.bounds))
    timing = timed(batch, given_terms)
    assert timing.seconds >= timing.bound * (1 - 1e-9)


@st.composite
def relieved(draw: st.DrawFn) -> tuple[BatchPlan, int]:
    """Placements whose ranks hold up to twice their room: the rest waits in the host's memory, or others run it."""
    batch, zero = draw(placements())
    cells = sorted(batch.held)
    moves = []
    for rank, step in cells:
        beside = [other for other, there in cells if there == step and other > rank]
        if beside and batch.held[rank, step] and draw(st.booleans()):
            most = batch.held[rank, step]
            moves.append(Move(step, rank, draw(st.sampled_from(beside)), draw(st.integers(1, most))))
    batch = replace(batch, moves=tuple(moves))
    wanted = {
        key: max(1.0 - batch.capacity / max(1, n), draw(st.sampled_from((0.0, 0.4)))) for key, n in batch.run.items()
    }
    offloads = tuple(Offload(step, rank, share) for (rank, step), share in sorted(wanted.items()) if share > 0.0)
    return replace(batch, offloads=offloads), zero


@settings(max_examples=150, deadline=None)
@given(relieved(), st.sampled_from((5e10, 2e9)), st.sampled_from((1, 2, 4)))
def test_no_remap_or_offload_goes_below_the_bound(case: tuple[BatchPlan, int], host: float, stages: int) -> None:
    batch, zero = case
    given_terms = terms(batch.ranks, zero, host=host, stages=stages, slowest=1.0 / stages)
    assume(not complaints(batch, given_terms.bounds))
    timing = timed(batch, given_terms)
    assert timing.seconds >= timing.bound * (1 - 1e-9)


class Steep(Terms):
    """Attention that many ranks speed up at last, and few before."""

    def alone(self, length: int) -> float:
        return 6.0 if length == 1000 else 50.0

    def shared(self, length: int, ranks: int, method: str) -> float:
        known = {4: 14.0, 5: 14.0, 6: 13.9, 7: 13.9, 8: 13.5, 12: 13.4, 16: 9.0}
        return self.alone(length) if ranks == 1 else known.get(ranks, 40.0 if ranks < 4 else 13.4)

    def waits(self, length: int, ranks: int, method: str) -> float:
        return 0.0


@pytest.mark.parametrize("zero", (1, 3))
def test_what_fills_a_line_of_stages_is_part_of_the_step(zero: int) -> None:
    """Four rings of four ranks, then one sequence a rank, over two stages: nothing takes longer than the step."""
    bounds = Bounds(16, 1024, zero, 8, state=1.0)
    given_terms = Steep(load("dgx-h200:2"), bounds, 1, 8, 0.0, 0.0, 0.0, terms().layers, "float32", stages=2)
    rings = tuple(Piece(i, 0, 4000, 0, tuple(range(4 * i, 4 * i + 4)), "ring") for i in range(4))
    short = tuple(Piece(4 + rank, 0, 1000, 1, (rank,)) for rank in range(16))
    batch = BatchPlan("by hand", (4000,) * 4 + (1000,) * 16, 16, 1024, rings + short)
    assert not complaints(batch, bounds)
    timing = timed(batch, given_terms)
    assert timing.seconds == pytest.approx(34.0) and timing.bound <= timing.seconds


def test_other_bounds_change_no_second() -> None:
    """Whoever asks first."""
    few, fresh = terms(4), terms.__wrapped__(4)
    wide = few.within(replace(few.bounds, capacity=16384))
    assert wide.shared(3000, 4, "ring") == fresh.shared(3000, 4, "ring") == few.shared(3000, 4, "ring")
    again = wide.within(few.bounds)
    assert again.shared(2500, 4, "ring") == fresh.shared(2500, 4, "ring")


def test_waits_that_nothing_fills_are_in_the_bound() -> None:
    """Where all ranks share all, whose keys leave no room for chunks, its waits are lost."""
    wide = terms(16)
    given_terms, length = wide.within(replace(wide.bounds, capacity=512, state=1.0)), 16 * 500
    method = given_terms.fastest(length, 16)[1]
    pieces = tuple(Piece(i, 0, length, i, tuple(range(16)), method) for i in range(3))
    timing = timed(BatchPlan("by hand", (length,) * 3, 16, 512, pieces), given_terms)
    assert given_terms.waits(length, 16, method) > 0.1 * given_terms.task(length, 16)
    assert 0.0 <= timing.gap < 0.03


PAIR = BatchPlan("by hand", (900, 500), 4, 1024, (Piece(0, 0, 900, 0, (0,)), Piece(1, 0, 500, 0, (1,))))


def test_dropped_chunks_run_forward_again() -> None:
    chunks = tuple(Piece(0, a, a + 300, a // 300, (0,)) for a in (0, 300, 600))
    batch, given_terms = BatchPlan("by hand", (900,), 4, 1024, chunks, retained=3), terms()
    attended = given_terms.alone(300), given_terms.alone(600)
    once = given_terms.attends * attended[0] + 0.3 * (given_terms.fixed + 300e-6)
    twice = given_terms.attends * attended[1] + 0.3 * (2 * given_terms.fixed + 600e-6)
    whole = timed(batch, given_terms).seconds
    assert timed(replace(batch, retained=2), given_terms).seconds - whole == pytest.approx(once)
    assert timed(replace(batch, retained=1), given_terms).seconds - whole == pytest.approx(twice)
    assert 0.1 < given_terms.attends < 0.5


def test_what_goes_to_the_host_slows_what_hides_it_and_no_micro_step_ends_before_it_is_launched() -> None:
    batch = replace(PAIR, offloads=(Offload(0, 0, 0.5),))
    slow = terms(host=0.5 * 900 * 1e4 / 1e-3)
    own, copying = timed(PAIR, slow).busy[0], 0.5 * 900 * 1e4 / terms().host
    assert timed(batch, terms()).busy[0] == pytest.approx(own + 2 * SLOWED * copying)
    waits = (1e-3 - 0.3 * own) + max(0.0, 1e-3 - 0.7 * own)
    assert timed(batch, slow).busy[0] == pytest.approx(own + waits + 2 * SLOWED * 1e-3)
    assert timed(batch, replace(slow, launch=0.5)).busy[0] == pytest.approx(0.5)
    assert timed(PAIR, replace(slow, launch=0.5)).busy[0] == own
    assert bound((900,) * 40, slow, offloaded=True) < bound((900,) * 40, slow)


def test_ranks_that_move_tokens_wait_around_each_attention() -> None:
    moved, given_terms = replace(PAIR, moves=(Move(0, 0, 1, 200),)), terms()
    seconds = given_terms.alone(900) + given_terms.fixed + 700e-6 + exchanged(moved.moves, given_terms)[0]
    assert timed(moved, given_terms).seconds == pytest.approx(given_terms.once + seconds)


@pytest.mark.parametrize("zero", (1, 3))
def test_a_line_of_stages_fills_and_drains_once(zero: int) -> None:
    batch = BatchPlan("by hand", (500,) * 6, 2, 1024, tuple(Piece(i, 0, 500, i // 2, (i % 2,)) for i in range(6)))
    given_terms = terms(2, zero, stages=4, slowest=0.3)
    each = given_terms.fixed + 500e-6 + given_terms.alone(500)
    assert timed(batch, given_terms).seconds == pytest.approx(given_terms.once + 0.3 * (3 + 3) * each)
    alone = bound(batch.lengths, terms(2, zero))
    assert bound(batch.lengths, given_terms) >= 0.3 * (alone + 3 * given_terms.fixed) * (1 - 1e-9)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from((6, 8, 12, 28)),
    st.sampled_from((4, 6, 8, 36)),
    st.integers(1, 64),
    st.integers(1024, 64_000),
    st.data(),
)
def test_no_way_of_a_sequence_is_below_the_bound(
    heads: int, node: int, ranks: int, length: int, data: st.DataObject
) -> None:
    """Whatever heads and nodes are, and on numbers of ranks that are looked up between others."""
    given_terms = terms(ranks, 1, heads, node)
    n = data.draw(st.integers(1, ranks))
    ways = given_terms.methods(n) if n > 1 else ("whole",)
    piece = Piece(0, 0, length, 0, tuple(range(n)), data.draw(st.sampled_from(ways)))
    batch = BatchPlan("one", (length,), ranks, 1024, (piece,))
    assume(not complaints(batch, given_terms.bounds))
    timing = timed(batch, given_terms)
    assert timing.seconds >= timing.bound * (1 - 1e-9)


@pytest.mark.parametrize(
    ("heads", "node", "ranks", "last"),
    [
        (32, 8, 8, "ulysses"),
        (32, 8, 16, "usp8"),
        (32, 8, 40, "usp8"),
        (32, 8, 12, "usp4"),
        (32, 8, 9, "ulysses"),
        (32, 8, 33, "gather_kv"),
        (28, 8, 32, "usp4"),
        (12, 8, 32, "usp4"),
        (4, 8, 8, "usp4"),
        (8, 72, 24, "usp8"),
        (8, 1, 16, "gather_kv"),
    ],
)
def test_heads_are_exchanged_inside_nodes(heads: int, node: int, ranks: int, last: str) -> None:
    """By groups that divide the ranks and their node, and leave no rank more heads than its share where they can."""
    assert terms(64, 1, heads, node).methods(ranks)[-1] == last


def test_what_leaves_a_node_is_not_looked_up_from_inside() -> None:
    """Beyond a node of 24, groups of four: the first number of them outside is looked up, others lie outside, too."""
    given_terms = terms(48, 1, 8, 24)
    found = {ranks: given_terms._degrees("usp4", ranks)[:2] for ranks in (20, 24, 28, 36, 44)}
    assert found == {20: (16, 24), 24: (24, 24), 28: (28, 28), 36: (32, 48), 44: (32, 48)}


def test_nothing_is_looked_up_on_more_ranks_than_there_are() -> None:
    """A pool of 44 ranks in groups of eight: the last of them is looked up itself."""
    assert terms(44)._degrees("usp8", 40)[:2] == (40, 40)
    assert terms(44)._degrees("ring", 40)[:2] == (32, 44)
