"""Schedules as text, and what `check` refuses, by name."""

from __future__ import annotations

import pytest

from fourfold.ir.schedule import Action, Schedule, ScheduleError
from fourfold.ir.schedule_checks import DeadlockError, check

TWO = """
0F0 0SEND_F0>1 0F1 0SEND_F1>1 0RECV_B0<1 0B0 0RECV_B1<1 0B1
1RECV_F0<0 1F0 1RECV_F1<0 1B0 1SEND_B0>0 1F1 1B1 1SEND_B1>0
"""


@pytest.mark.parametrize(
    ("word", "action"),
    [
        ("2F0", Action(2, "F", 0)),
        ("2B10", Action(2, "B", 10)),
        ("2I0", Action(2, "I", 0)),
        ("2W3", Action(2, "W", 3)),
        ("2SEND_F0>3", Action(2, "SEND_F", 0, 3)),
        ("3RECV_F0<2", Action(3, "RECV_F", 0, 2)),
        ("13SEND_B4>12", Action(13, "SEND_B", 4, 12)),
        ("2RECV_B0<3", Action(2, "RECV_B", 0, 3)),
        ("2UNSHARD", Action(2, "UNSHARD")),
        ("2RESHARD", Action(2, "RESHARD")),
        ("2REDUCE", Action(2, "REDUCE")),
        ("2REDUCE_TIED", Action(2, "REDUCE_TIED")),
    ],
)
def test_a_word_is_an_action(word: str, action: Action) -> None:
    assert Action.parse(word) == action
    assert str(action) == word


def test_a_text_is_a_schedule() -> None:
    schedule = Schedule.parse(TWO)
    assert (schedule.stages, schedule.ranks, schedule.micro_steps, schedule.owner) == (2, 2, 2, (0, 1))
    assert str(schedule) == TWO.strip()
    check(schedule)
    check(schedule, queue="rank")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0F0 0X0\n1F0", "line 1: '0X0' is no action"),
        ("0F0\n\n1SEND_F0", "line 3: '1SEND_F0' is no action"),
        ("0F0\n1F0 0B0", "line 2: 0B0 lies on rank 1, but stage 0 is on rank 0"),
        ("0F0\n2F0", "stage 1 of 3 is on no line"),
        (" \n", "at least 1 rank and 1 micro-step"),
    ],
)
def test_a_text_that_is_no_schedule(text: str, said: str) -> None:
    with pytest.raises(ScheduleError, match="^" + said if said.startswith("line") else said):
        Schedule.parse(text)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (" 1B1 1SEND", " 1SEND", "rank 1 1B1: is missing"),
        ("0F1 0SEND_F1>1", "0F1", "rank 0 0SEND_F1>1: is missing"),
        ("1RECV_F1<0 ", "", "rank 1 1RECV_F1<0: is missing"),
        ("0F1", "0F1 0F1", "rank 0 0F1: stands 2 times"),
        ("0SEND_F1>1", "0SEND_F1>1 0SEND_F1>1", "rank 0 0SEND_F1>1: stands 2 times"),
        ("1B0", "1I0 1B0 1W0", "rank 1 1B0: is not of this schedule"),
        ("0SEND_F1>1", "0SEND_F1>1 0SEND_F1>0", "rank 0 0SEND_F1>0: is not of this schedule"),
        ("1B0", "1W0 1I0", "rank 1 1W0: stands before 1I0"),
        ("1RECV_F0<0 1F0", "1F0 1RECV_F0<0", "rank 1 1F0: stands before 1RECV_F0<0"),
        ("1F0 1RECV_F1<0 1B0", "1B0 1RECV_F1<0 1F0", "rank 1 1B0: stands before 1F0"),
        ("0RECV_B0<1 0B0", "0B0 0RECV_B0<1", "rank 0 0B0: stands before 0RECV_B0<1"),
        ("0F0 0SEND_F0>1", "0SEND_F0>1 0F0", "rank 0 0SEND_F0>1: stands before 0F0"),
        ("0F0 0S", "0UNSHARD 0F0 0RESHARD 0S", "rank 0 0F1: stage 0 is not gathered"),
        ("0F0 0S", "0UNSHARD 0UNSHARD 0F0 0S", "rank 0 0UNSHARD: stage 0 is gathered already"),
        ("1B1", "1REDUCE 1B1", "rank 1 1REDUCE: stands before 1B1"),
    ],
)
def test_what_cannot_be_executed_is_refused_by_name(old: str, new: str, said: str) -> None:
    assert old in TWO
    with pytest.raises(ScheduleError, match=said):
        check(Schedule.parse(TWO.replace(old, new, 1)))


def test_a_lane_of_two_stages_hands_over_without_messages() -> None:
    check(Schedule.parse("0F0 1F0 1B0 0B0"))
    with pytest.raises(ScheduleError, match="rank 0 1F0: stands before 0F0"):
        check(Schedule.parse("1F0 0F0 1B0 0B0"))
    with pytest.raises(ScheduleError, match="rank 0 0B0: stands before 1B0"):
        check(Schedule.parse("0F0 1F0 0B0 1B0"))


def test_a_dead_lock_of_computes_names_its_cycle() -> None:
    with pytest.raises(DeadlockError) as refused:
        check(Schedule.parse("0F0 0B0 0F1 0B1\n1F1 1B1 1F0 1B0"))
    cycle = ["rank 0 0B0", "rank 1 1B0", "rank 1 1F0", "rank 1 1B1", "rank 1 1F1", "rank 0 0F1"]
    assert _cycle(refused.value) == _turned(cycle)


def test_a_dead_lock_through_messages_names_the_messages() -> None:
    text = """
    0F0 0SEND_F0>1 0RECV_B0<1 0B0 0F1 0SEND_F1>1 0RECV_B1<1 0B1
    1RECV_F0<0 1RECV_F1<0 1F0 1F1 1B0 1SEND_B0>0 1B1 1SEND_B1>0
    """
    with pytest.raises(DeadlockError) as refused:
        check(Schedule.parse(text))
    assert _cycle(refused.value) == _turned(
        [
            "rank 0 0B0",
            "rank 0 0RECV_B0<1",
            "rank 1 1SEND_B0>0",
            "rank 1 1B0",
            "rank 1 1F1",
            "rank 1 1RECV_F1<0",
            "rank 0 0SEND_F1>1",
            "rank 0 0F1",
        ]
    )


def test_a_queue_that_both_ends_fill_in_another_order_is_a_dead_lock() -> None:
    """Rank 0 sends its activation before it takes the gradient; rank 1 sends the gradient first."""
    crossed = TWO.replace("1F0 1RECV_F1<0 1B0 1SEND_B0>0", "1F0 1B0 1SEND_B0>0 1RECV_F1<0")
    with pytest.raises(DeadlockError) as refused:
        check(Schedule.parse(crossed))
    assert _cycle(refused.value) == _turned(
        ["rank 0 0SEND_F1>1", "rank 1 1RECV_F1<0", "rank 1 1SEND_B0>0", "rank 0 0RECV_B0<1"]
    )


RING = """
0F0 0SEND_F0>1 3RECV_F0<2 0F1 0SEND_F1>1 3RECV_F1<2 3F0 3SEND_F0>4 3F1 3SEND_F1>4 {}
1RECV_F0<0 1F0 1RECV_F1<0 1SEND_F0>2 1F1 1SEND_F1>2 4RECV_F0<3 4F0 4SEND_F0>5 4RECV_F1<3 4F1 4SEND_F1>5 {}
2RECV_F0<1 2F0 2SEND_F0>3 2RECV_F1<1 2F1 2SEND_F1>3 5RECV_F0<4 5F0 5RECV_F1<4 5F1 {}
""".format(
    "3RECV_B0<4 3B0 3SEND_B0>2 3RECV_B1<4 3B1 3SEND_B1>2 0RECV_B0<1 0B0 0RECV_B1<1 0B1",
    "4RECV_B0<5 4B0 4SEND_B0>3 4RECV_B1<5 4B1 4SEND_B1>3 1RECV_B0<2 1B0 1SEND_B0>0 1RECV_B1<2 1B1 1SEND_B1>0",
    "5B0 5SEND_B0>4 5B1 5SEND_B1>4 2RECV_B0<3 2B0 2SEND_B0>1 2RECV_B1<3 2B1 2SEND_B1>1",
)


def test_one_queue_a_rank_locks_where_one_a_pair_does_not() -> None:
    """Three ranks in a ring, each with a RECV from one neighbour in its queue before a SEND to the other."""
    ring = Schedule.parse(RING)
    assert ring.owner == (0, 1, 2, 0, 1, 2)
    check(ring)
    with pytest.raises(DeadlockError) as refused:
        check(ring, queue="rank")
    assert _cycle(refused.value) == _turned(
        [
            "rank 0 0SEND_F1>1",
            "rank 0 3RECV_F0<2",
            "rank 2 2SEND_F0>3",
            "rank 2 2F0",
            "rank 2 2RECV_F0<1",
            "rank 1 1SEND_F0>2",
            "rank 1 1RECV_F1<0",
        ]
    )


def _cycle(error: DeadlockError) -> list[str]:
    """The actions of the cycle, turned so that the smallest comes first."""
    names = str(error).removeprefix("dead-lock: ").split(" waits for ")
    assert names[0] == names[-1]
    return _turned(names[:-1])


def _turned(names: list[str]) -> list[str]:
    first = names.index(min(names))
    return names[first:] + names[:first]
