"""Orders of a batch: every rank keeps the rules of chunks, and no two ranks wait for each other in a circle."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold.hardware.errors import UsageError
from fourfold.ir.batch import BatchPlan, Move, Piece
from fourfold.ir.batch_rules import of_sequences
from fourfold.ir.schedule import COMPUTE, Schedule, in_turn
from fourfold.ir.schedule_checks import check
from fourfold.ir.schedule_waits import Waits, waits
from fourfold.passes.batch.timing.orders import again, schedule_of
from fourfold.passes.schedule import scheduled
from fourfold.passes.schedule.timing import in_flight

STEPS = 6


@st.composite
def batches(draw: st.DrawFn) -> BatchPlan:
    """Sequences on any ranks, whole or cut into chunks, and remaps."""
    ranks = draw(st.integers(1, 5))
    pieces, lengths = [], []
    for sequence in range(draw(st.integers(1, 7))):
        held = tuple(sorted(draw(st.sets(st.integers(0, ranks - 1), min_size=1, max_size=2))))
        steps = sorted(draw(st.sets(st.integers(0, STEPS - 1), min_size=1, max_size=4)))
        method = "ring" if len(held) > 1 else "whole"
        pieces += [Piece(sequence, 8 * i, 8 * i + 8, step, held, method) for i, step in enumerate(steps)]
        lengths.append(8 * len(steps))
    busy = sorted({(piece.micro_step, rank) for piece in pieces for rank in piece.ranks})
    pairs = [(a, b) for a in busy for b in busy if a[0] == b[0] and a[1] != b[1]]
    moved = draw(st.lists(st.sampled_from(pairs), max_size=2)) if pairs else []
    moves = tuple(Move(a[0], a[1], b[1], 1) for a, b in moved)
    return BatchPlan("drawn", tuple(lengths), ranks, 99, tuple(pieces), draw(st.integers(1, 3)), moves)


def ran(batch: BatchPlan, rank: int, zero: int) -> list[int]:
    """The micro-steps of the batch by their number on a rank."""
    if zero > 1:
        return list(range(batch.micro_steps))
    return [step for step, _ in batch.of(rank)] or [0]


@settings(max_examples=150, deadline=None)
@given(batches(), st.integers(1, 3), st.sampled_from((0, 1, 2, 3)), st.sampled_from(("1f1b", "zero_bubble", "gpipe")))
def test_ranks_run_what_they_share_in_one_order(batch: BatchPlan, stages: int, zero: int, kind: str) -> None:
    found = [schedule_of(batch, rank, stages=stages, zero=zero, kind=kind) for rank in range(batch.ranks)]
    orders = [_computes(one, ran(batch, rank, zero)) for rank, one in enumerate(found)]
    for rank, one in enumerate(found):
        mine = ran(batch, rank, zero)
        chains = [
            tuple(mine.index(piece.micro_step) for piece in pieces)
            for pieces in of_sequences(batch)
            if rank in pieces[0].ranks
        ]
        assert one.micro_steps == len(mine)
        check(one, chains=chains)
        if any(len(chain) > 1 for chain in chains):
            assert all(n <= batch.retained + stages - 1 - stage for stage, n in enumerate(in_flight(one)))
        twice = {mine[action.micro_step] for line in one.lines for action in line if action.kind == "N"}
        assert twice == {step for at, step in again(batch, zero) if at == rank}
        for other in range(rank):
            if zero > 1 or {rank, other} <= _tied(batch, rank):
                for line, beside in zip(orders[rank], orders[other], strict=True):
                    assert [a for a in line if a in beside] == [a for a in beside if a in line]
    assert _ends(batch, zero, found)


def _computes(schedule: Schedule, steps: list[int]) -> list[list[tuple[str, int]]]:
    """Of each stage its computes, by the batch's micro-steps."""
    return [[(a.kind, steps[a.micro_step]) for a in line if a.kind in COMPUTE] for line in schedule.lines]


def _tied(batch: BatchPlan, rank: int) -> set[int]:
    """Ranks that this one can come to wait for."""
    groups = [set(p.ranks) for p in batch.pieces] + [{m.source, m.target} for m in batch.moves]
    found = {rank}
    for _ in range(batch.ranks):
        found |= {other for group in groups if group & found for other in group}
    return found


def _ends(batch: BatchPlan, zero: int, schedules: list[Schedule]) -> bool:
    """Whether all ranks come to their end, when a compute of a team begins once all its ranks have come to it."""
    graphs = [waits(one) for one in schedules]
    nodes: dict[tuple[int, int], tuple[object, ...]] = {}
    for rank, graph in enumerate(graphs):
        steps = ran(batch, rank, zero)
        for node, action in enumerate(graph.actions):
            together = _together(batch, rank, steps[action.micro_step], zero) if action.kind in COMPUTE else (rank,)
            nodes[rank, node] = (together, action.stage, action.kind, steps[action.micro_step])
    numbers = {name: at for at, name in enumerate(dict.fromkeys(nodes.values()))}
    after: list[set[int]] = [set() for _ in numbers]
    for (rank, node), name in nodes.items():
        after[numbers[name]] |= {numbers[nodes[rank, before]] for before in graphs[rank].after[node]}
    merged = Waits((), (), tuple(map(tuple, after)))
    return len(merged.order()) == len(after)


def _together(batch: BatchPlan, rank: int, step: int, zero: int) -> tuple[int, ...]:
    """The ranks that run a micro-step as one: those of one team or remap, or of several that overlap."""
    if zero > 1:
        return tuple(range(batch.ranks))
    there = replace(
        batch,
        pieces=tuple(p for p in batch.pieces if p.micro_step == step),
        moves=tuple(m for m in batch.moves if m.micro_step == step),
    )
    return tuple(sorted(_tied(there, rank)))


def plan(*pieces: Piece, ranks: int = 2, retained: int = 1) -> BatchPlan:
    """A batch of these pieces, whose sequences are as long as they say."""
    count = 1 + max(piece.sequence for piece in pieces)
    lengths = tuple(max(piece.stop for piece in pieces if piece.sequence == i) for i in range(count))
    return BatchPlan("by hand", lengths, ranks, 99, pieces, retained)


def chain(sequence: int, steps: Iterable[int], *ranks: int) -> list[Piece]:
    """A sequence of 8 tokens a chunk."""
    method = "ring" if len(ranks) > 1 else "whole"
    return [Piece(sequence, 8 * i, 8 * i + 8, step, ranks, method) for i, step in enumerate(steps)]


def test_a_rank_by_itself_runs_its_own_micro_steps() -> None:
    """Those of others do not count, and the numbers are its own."""
    batch = plan(*chain(0, (1, 3, 4), 0), *chain(1, (2,), 0), *chain(2, (0,), 1), *chain(3, (2,), 1))
    assert str(schedule_of(batch, 0, stages=1, zero=1, kind="1f1b")) == "0N0 0N2 0F3 0B3 0F2 0B2 0F0 0B0 0F1 0B1"
    assert schedule_of(batch, 1, stages=1, zero=1, kind="1f1b") == in_turn(2)
    assert schedule_of(batch, 1, stages=2, zero=1, kind="1f1b") == scheduled("1f1b", 2, 2)
    assert again(batch, 1) == {(0, 1), (0, 3)}


def test_all_ranks_go_in_step_where_all_gather() -> None:
    batch = plan(*chain(0, (1, 3), 0), *chain(1, (0,), 1))
    for rank in range(2):
        assert str(schedule_of(batch, rank, stages=1, zero=2, kind="1f1b")) == "0F0 0B0 0N1 0F3 0B3 0F1 0B1 0F2 0B2"
    assert again(batch, 3) == {(0, 1), (1, 1)}


def test_a_rank_without_pieces_reduces() -> None:
    batch = plan(*chain(0, (0, 1), 0))
    assert schedule_of(batch, 1, stages=1, zero=1, kind="1f1b") == in_turn(1)


def test_ranks_of_a_pipeline_leave_out_what_they_do_not_run() -> None:
    """By itself rank 1 would begin micro-step 2 before it ends 0; rank 0, which runs both with it, ends 0 first."""
    batch = plan(*chain(0, (0,), 0, 1), *chain(1, (1,), 0), *chain(2, (2,), 0, 1))
    assert str(schedule_of(batch, 1, stages=2, zero=1, kind="1f1b")).splitlines()[0].replace("SEND_F", "S") == (
        "0F0 0S0>1 0RECV_B0<1 0B0 0F1 0S1>1 0RECV_B1<1 0B1"
    )
    assert schedule_of(batch, 0, stages=2, zero=1, kind="1f1b") == scheduled("1f1b", 2, 3)


def test_a_place_of_several_stages_runs_no_chunks() -> None:
    batch = plan(*chain(0, (0, 1), 0))
    with pytest.raises(UsageError, match="interleaved-2 cannot run: plan with --pin schedule=1f1b"):
        schedule_of(batch, 0, stages=2, zero=1, kind="interleaved-2")
    assert "0I1 0W1" in str(schedule_of(batch, 0, stages=2, zero=1, kind="zero_bubble"))
