"""Gathers and reductions in a schedule: where they must stand, and no more of them than needed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourfold.hardware.errors import UsageError
from fourfold.ir.schedule import Schedule
from fourfold.ir.schedule_checks import check
from fourfold.passes.schedule import KINDS
from fourfold.passes.schedule.interleaved import interleaved
from fourfold.passes.schedule.one_f_one_b import one_f_one_b
from fourfold.passes.schedule.reductions import with_gathers, with_reductions
from fourfold.passes.schedule.sends import with_sends
from fourfold.passes.schedule.timing import timed
from fourfold.passes.schedule.zero_bubble import zero_bubble


def test_gradients_are_reduced_behind_the_last() -> None:
    assert str(with_reductions(zero_bubble(2, 2), tied=(0, 1))) == (
        "0F0 0F1 0I0 0W0 0I1 0W1 0REDUCE 0REDUCE_TIED\n1F0 1I0 1F1 1I1 1W0 1W1 1REDUCE 1REDUCE_TIED"
    )


def test_a_stage_is_gathered_once_where_there_is_room() -> None:
    assert (
        str(with_gathers(one_f_one_b(2, 2))) == "0UNSHARD 0F0 0F1 0B0 0B1 0RESHARD\n1UNSHARD 1F0 1B0 1F1 1B1 1RESHARD"
    )


def test_the_stage_needed_last_is_let_go_of() -> None:
    """Two of three stages at a time: stage 2 takes the room of 0, which comes back when 2 is done with."""
    assert str(with_gathers(interleaved(1, 1, 3), resident=2)) == (
        "0UNSHARD 1UNSHARD 0F0 0RESHARD 2UNSHARD 1F0 2F0 2B0 2RESHARD 0UNSHARD 1B0 1RESHARD 0B0 0RESHARD"
    )


def test_each_compute_has_its_stage_gathered_within_bounds() -> None:
    for resident in (1, 2, 3):
        for ahead in (0, 1, 2):
            schedule = with_gathers(with_sends(interleaved(4, 6, 3)), resident=resident, ahead=ahead)
            check(schedule)
            assert max(_gathered_at_once(schedule)) <= resident


@given(st.sampled_from(sorted(KINDS)), st.integers(1, 6), st.integers(1, 8), st.integers(1, 2))
def test_lowered_whole_a_schedule_runs_and_reads_back(kind: str, p: int, m: int, resident: int) -> None:
    made = with_sends(KINDS[kind](p, m))
    tied = (0, made.stages - 1) if made.stages > 1 else ()
    whole = with_reductions(with_gathers(made, resident=resident), tied=tied)
    check(whole)
    check(whole, queue="rank")
    assert Schedule.parse(str(whole)) == whole


def test_gathers_and_reductions_take_time_beside_the_computes() -> None:
    """A rank waits for its first gather; the reduction of the last gradient comes on top, the others hide."""
    seconds = {(s, kind): took for s in (0, 1) for kind, took in (("F", 1.0), ("B", 2.0), ("UNSHARD", 5.0))}
    bare = timed(one_f_one_b(2, 4), seconds).makespan
    lowered = with_reductions(with_gathers(one_f_one_b(2, 4)))
    assert timed(lowered, seconds).makespan == bare + 5.0
    assert timed(lowered, {**seconds, (0, "REDUCE"): 0.5, (1, "REDUCE"): 0.25}).makespan == bare + 5.5


@pytest.mark.parametrize("tied", [(0,), (0, 2), (-1, 0)])
def test_tied_stages_are_stages(tied: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="two or more of 0 to 1"):
        with_reductions(one_f_one_b(2, 2), tied=tied)


def test_a_rank_needs_a_gathered_stage() -> None:
    with pytest.raises(UsageError, match="resident=0"):
        with_gathers(one_f_one_b(2, 2), resident=0)


def _gathered_at_once(schedule: Schedule) -> list[int]:
    """The most stages each rank has gathered."""
    most = []
    for line in schedule.lines:
        held, peak = 0, 0
        for action in line:
            held += {"UNSHARD": 1, "RESHARD": -1}.get(action.kind, 0)
            peak = max(peak, held)
        most.append(peak)
    return most
