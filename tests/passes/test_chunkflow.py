"""ChunkFlow's placements: what a rank holds at any time, who is cut how, and what forwards that run twice cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold.hardware import load
from fourfold.hardware.errors import InfeasibleError
from fourfold.ir.batch import BatchPlan, Piece
from fourfold.ir.batch_rules import Bounds, complaints, of_sequences
from fourfold.ir.schedule_checks import check
from fourfold.passes.batch.chunkflow import chunkflow
from fourfold.passes.batch.placing.chains import Chain, in_step
from fourfold.passes.batch.timing.orders import schedule_of
from fourfold.passes.batch.timing.terms import Layer, Terms
from fourfold.passes.batch.timing.timing import timed
from fourfold.passes.sequence.tables import Heads

MACHINE = load("dgx-h200:8")


@cache
def terms(ranks: int, capacity: int, zero: int, state: float) -> Terms:
    """A small model whose forward is a quarter of its time."""
    layer = Layer(Heads(8, 2, 64, "bfloat16", causal=True), 4, 1.0)
    bounds = Bounds(ranks, capacity, zero, 8, state=state)
    return Terms(MACHINE, bounds, 1, 8, 1e-3, 1e-6, 1e-2, (layer,), "float32", forward=0.25)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.one_of(st.integers(1, 60), st.integers(50, 900)), min_size=1, max_size=20),
    st.integers(1, 5),
    st.sampled_from((0, 1, 2, 3)),
    st.sampled_from((0.0, 0.05, 0.2)),
)
def test_every_rank_has_room_at_any_time(lengths: list[int], ranks: int, zero: int, state: float) -> None:
    """Activations from a kept forward to its backward, keys from the first chunk to the last backward."""
    given_terms = terms(ranks, 100, zero, state)
    longest = max(lengths)
    if longest > 100 and ceil(state * longest) + 100 // 16 > 100:
        with pytest.raises(InfeasibleError, match=f"sequence {lengths.index(longest)} of {longest:,} tokens"):
            chunkflow(lengths, given_terms)
        return
    batch = chunkflow(lengths, given_terms)
    assert complaints(batch, given_terms.bounds) == ()
    _cut_alike(batch)
    for rank in range(ranks):
        assert max(_held(batch, rank, zero, state), default=0.0) <= 100


def _held(batch: BatchPlan, rank: int, zero: int, state: float) -> Iterator[float]:
    """Tokens whose room a rank fills after each action: activations that it keeps, and keys and values."""
    schedule = schedule_of(batch, rank, stages=1, zero=zero, kind="1f1b")
    steps = list(range(batch.micro_steps)) if zero > 1 else [step for step, _ in batch.of(rank)] or [0]
    mine = [pieces for pieces in of_sequences(batch) if rank in pieces[0].ranks]
    check(schedule, chains=[[steps.index(piece.micro_step) for piece in pieces] for pieces in mine])
    kept, open_ = 0, 0.0
    for action in schedule.lines[0]:
        step = steps[action.micro_step]
        sign = {"N": 0, "F": 1, "B": -1}[action.kind]
        kept += sign * batch.held.get((rank, step), 0)
        for pieces in mine:
            if len(pieces) > 1 and step == pieces[0].micro_step:
                first = action.kind == "N" or (action.kind == "F" and f"0N{action.micro_step} " not in str(schedule))
                open_ += pieces[-1].stop * ((action.kind != "B" and first) - (action.kind == "B"))
        yield kept + state * open_


def _cut_alike(batch: BatchPlan) -> None:
    """As few chunks as hold a sequence, alike but for the first, in successive micro-steps of one rank."""
    cut = [pieces for pieces in of_sequences(batch) if len(pieces) > 1]
    size = max((piece.tokens for pieces in cut for piece in pieces), default=0)
    for pieces in cut:
        assert {piece.tokens for piece in pieces[1:]} == {size} and pieces[0].tokens <= size
        assert {piece.ranks for piece in pieces} == {pieces[0].ranks} and len(pieces[0].ranks) == 1
        assert all(later.micro_step == piece.micro_step + 1 for piece, later in pairwise(pieces))


def test_short_sequences_alone_are_packed() -> None:
    batch = chunkflow((40, 60, 70, 30), terms(2, 100, 1, 0.1))
    assert (batch.micro_steps, len(batch.pieces), batch.retained) == (1, 4, 1)


def test_the_longest_goes_by_itself() -> None:
    """On one rank its four chunks, dropped but for the last, and the others on the other."""
    batch = chunkflow((390, 60, 40, 60), terms(2, 100, 1, 0.0))
    assert str(batch).splitlines() == [
        "chunkflow: 4 sequences, 550 tokens on 2 ranks of 100",
        "0  0  whole  90: 0[0:90]",
        "0  1  whole  100: 1[0:60] 2[0:40]",
        "1  0  whole  100: 0[90:190]",
        "1  1  whole  60: 3[0:60]",
        "2  0  whole  100: 0[190:290]",
        "3  0  whole  100: 0[290:390]",
    ]


def test_chains_end_together_where_all_ranks_go_in_step() -> None:
    """Under ZeRO 3: two long ones side by side, a shorter one at their end on no rank of its own, bins beside it."""
    batch = chunkflow((390, 390, 190, 60, 60), terms(3, 100, 3, 0.0))
    found = {p.sequence: (p.ranks[0], p.micro_step) for p in batch.pieces if p.stop == batch.lengths[p.sequence]}
    assert found[0] == (0, 3) and found[1] == (1, 3) and found[2] == (2, 3)
    assert {found[3], found[4]} == {(2, 1), (2, 0)}
    lines = {str(schedule_of(batch, rank, stages=1, zero=3, kind="1f1b")) for rank in range(3)}
    assert lines == {"0N0 0N1 0N2 0F3 0B3 0F2 0B2 0F1 0B1 0F0 0B0"}


def test_a_rank_keeps_no_more_keys_in_a_block_than_its_longest_chain() -> None:
    """The second and the third would both fit rank 1 beside the first, by chunks: together they are longer."""
    chains = [Chain(0, (0, 10, 110, 210, 310), 4.0), Chain(1, (0, 100, 200), 2.0), Chain(2, (0, 90, 190), 2.0)]
    pieces = in_step(chains, lambda cells: [], (310, 200, 190), 2)
    assert [(p.sequence, p.ranks[0], p.micro_step) for p in pieces] == [
        *((0, 0, step) for step in range(4)),
        *((1, 1, step) for step in (2, 3)),
        *((2, 0, step) for step in (4, 5)),
    ]
    lower = [*chains[:2], Chain(2, (0, 10, 110), 1.0)]
    assert in_step(lower, lambda cells: [], (310, 200, 110), 2)[-1].micro_step == 1


@pytest.mark.parametrize("zero", [1, 3])
def test_a_forward_that_runs_twice_costs_its_share(zero: int) -> None:
    """Of the ranks that run it again: all of them where they go in step."""
    pieces = (Piece(0, 0, 100, 0, (0,)), Piece(0, 100, 200, 1, (0,)), Piece(1, 0, 50, 0, (1,)))
    batch, priced = BatchPlan("by hand", (200, 50), 2, 100, pieces, retained=1), terms(2, 100, zero, 0.0)
    kept = timed(replace(batch, retained=2), priced)
    dropped = timed(batch, priced)
    again = 0.25 * (priced.fixed + 100 * priced.linear) + priced.attends * priced.alone(100)
    attended, regions, more = priced.alone(50), priced.fixed + 50 * priced.linear, float(zero == 3)
    assert dropped.seconds == pytest.approx(kept.seconds + again)
    assert dropped.busy[1] == pytest.approx(attended * (1 + priced.attends * more) + regions * (1 + 0.25 * more))


def test_keys_that_leave_no_room_are_refused_with_a_capacity_that_does() -> None:
    lengths = (10, 2000)
    with pytest.raises(InfeasibleError) as refused:
        chunkflow(lengths, terms(4, 100, 1, 0.05))
    assert str(refused.value) == (
        "chunkflow cannot place sequence 1 of 2,000 tokens: its keys and values take a rank the room of 100 tokens of "
        "100, and a chunk of 6 goes beside them; a capacity of 109 would do, or a policy that shares it"
    )
    assert complaints(chunkflow(lengths, terms(4, 109, 1, 0.05)), Bounds(4, 109, 1, 8, state=0.05)) == ()


@pytest.mark.parametrize("lengths", [(1000,), (390, 60, 40, 60), (300, 300, 300, 300, 50, 50)])
def test_without_a_pipeline_one_large_chunk_is_kept(lengths: Sequence[int]) -> None:
    """Source: ChunkFlow's tuning: more chunks kept are smaller, and drop as many tokens."""
    assert chunkflow(lengths, terms(2, 100, 1, 0.0)).retained == 1
