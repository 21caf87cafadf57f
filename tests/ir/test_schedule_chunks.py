"""Forwards that keep nothing, and chunks that wait for each other: what `check` takes and what it refuses, by name."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from fourfold.ir.schedule import Action, Schedule, ScheduleError
from fourfold.ir.schedule_checks import DeadlockError, check
from fourfold.ir.schedule_waits import waits
from fourfold.passes.schedule.sends import with_sends
from fourfold.passes.schedule.timing import in_flight, timed

ALONE = "0N0 0N1 0F2 0B2 0F1 0B1 0F0 0B0"
"""Three chunks on one stage, of which one is kept."""
TWO = """
0N0 0SEND_F0>1 0F1 0SEND_F1>1 0RECV_B1<1 0B1 0F0 0RECV_B0<1 0B0
1RECV_F0<0 1N0 1RECV_F1<0 1F1 1B1 1SEND_B1>0 1F0 1B0 1SEND_B0>0
"""
BARE = "0N0 0F1 0B1 0F0 0B0\n1N0 1F1 1B1 1F0 1B0"
CHAIN = ((0, 1),)


def test_the_word() -> None:
    assert Action.parse("12N3") == Action(12, "N", 3)
    assert str(Action(12, "N", 3)) == "12N3"


@pytest.mark.parametrize(("text", "chains"), [(ALONE, ((0, 1, 2),)), (TWO, CHAIN), (BARE, CHAIN)])
def test_chunks_run(text: str, chains: Sequence[Sequence[int]]) -> None:
    schedule = Schedule.parse(text)
    assert Schedule.parse(str(schedule)) == schedule
    check(schedule, chains=chains)
    check(schedule, queue="rank", chains=chains)


def test_the_first_forward_gives_on() -> None:
    assert str(with_sends(Schedule.parse(BARE), ahead=0)) == TWO.strip()


@pytest.mark.parametrize("text", ["0F0 0F1 0B1 0B0\n1N0 1F1 1B1 1F0 1B0", "0N0 0F1 0B1 0F0 0B0\n1F0 1F1 1B1 1B0"])
def test_stages_need_not_drop_the_same(text: str) -> None:
    check(Schedule.parse(text), chains=CHAIN)
    check(with_sends(Schedule.parse(text)), queue="rank", chains=CHAIN)


@pytest.mark.parametrize(
    ("text", "old", "new", "said"),
    [
        (ALONE, "0N0", "0N0 0N0", "rank 0 0N0: stands 2 times"),
        (ALONE, "0F0 ", "", "rank 0 0F0: is missing"),
        (ALONE, "0B0", "0B0 0N2", "rank 0 0F2: stands before 0N2, which it needs"),
        (ALONE, "0N0 0N1", "0N1 0N0", "rank 0 0N1: stands before 0N0, which it needs"),
        (ALONE, "0N1 0F2", "0F2 0N1", "rank 0 0F2: stands before 0N1, which it needs"),
        (ALONE, "0F1 0B1 0F0 0B0", "0F0 0B0 0F1 0B1", "rank 0 0B0: stands before 0B1, which it needs"),
        (ALONE, "0F2 0B2 0F1 0B1", "0F2 0F1 0B1 0B2", "rank 0 0B1: stands before 0B2, which it needs"),
        (ALONE, "0F2 0B2 0F1 0B1", "0F2 0F1 0I1 0I2 0W1 0W2", "rank 0 0I1: stands before 0I2, which it needs"),
        (ALONE, "0B1", "0I1", "rank 0 0W1: is missing"),
        (ALONE, "0N0", "0UNSHARD 0N0 0RESHARD", "rank 0 0N1: stage 0 is not gathered"),
        (TWO, "0SEND_F0>1 0F1", "0F1", "rank 0 0SEND_F0>1: is missing"),
        (TWO, "0N0 0SEND_F0>1", "0SEND_F0>1 0N0", "rank 0 0SEND_F0>1: stands before 0N0, which it needs"),
        (TWO, "1RECV_F0<0 1N0", "1N0 1RECV_F0<0", "rank 1 1N0: stands before 1RECV_F0<0, which it needs"),
        (TWO, "1F0 1B0", "1RECV_F0<0 1F0 1B0", "rank 1 1RECV_F0<0: stands 2 times"),
    ],
)
def test_what_would_compute_something_wrong_is_refused(text: str, old: str, new: str, said: str) -> None:
    assert old in text
    with pytest.raises(ScheduleError, match=said):
        check(Schedule.parse(text.replace(old, new, 1)), chains=((0, 1, 2),) if text == ALONE else CHAIN)


@pytest.mark.parametrize("chains", [((0, 3),), ((0, 1, 0),), ((-1, 0),)])
def test_chains_are_of_micro_steps_that_are_there(chains: Sequence[Sequence[int]]) -> None:
    with pytest.raises(ScheduleError, match="is there twice or none of 0 to 2"):
        check(Schedule.parse(ALONE), chains=chains)


def test_a_micro_step_may_hold_chunks_of_two_sequences() -> None:
    check(Schedule.parse(ALONE), chains=((0, 1), (1, 2)))
    with pytest.raises(ScheduleError, match="0B1: stands before 0B2"):
        check(Schedule.parse(ALONE.replace("0B2 0F1 0B1", "0F1 0B1 0B2")), chains=((0, 1), (1, 2)))


def test_a_forward_run_again_waits_for_no_message() -> None:
    """Nor for other chunks: it may stand anywhere behind its N."""
    check(Schedule.parse(ALONE.replace("0N1 0F2 0B2 0F1 0B1 0F0", "0F0 0N1 0F2 0B2 0F1 0B1")), chains=((0, 1, 2),))
    graph = waits(Schedule.parse(TWO))
    names = [str(action) for action in graph.actions]
    assert [names[k] for k in graph.after[names.index("1F0")]] == ["1B1", "1N0"]
    assert [names[k] for k in graph.after[names.index("1N0")]] == ["0SEND_F0>1"]


def test_a_dead_lock_goes_through_what_is_dropped() -> None:
    with pytest.raises(DeadlockError, match="rank 1 1N0 waits for rank 0 0N0"):
        check(Schedule.parse("0F1 0B1 0N0 0F0 0B0\n1N0 1F0 1B0 1F1 1B1"))


def test_what_is_dropped_takes_a_forward_and_holds_nothing() -> None:
    schedule = Schedule.parse(ALONE)
    assert in_flight(schedule) == (1,)
    assert timed(schedule, {(0, "F"): 1.0, (0, "B"): 2.0}).makespan == 3 * 3.0 + 2
    assert timed(schedule, {(0, "N"): 0.5, (0, "F"): 1.0, (0, "B"): 2.0}).busy == (3 * 3.0 + 1,)
