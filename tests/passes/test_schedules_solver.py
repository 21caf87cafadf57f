"""Solver-made schedules against every order there is, and against where they start."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations, product
from random import Random

import pytest

from fourfold.hardware.errors import UsageError
from fourfold.ir.schedule import Action, Schedule, ScheduleError
from fourfold.ir.schedule_checks import check
from fourfold.passes.schedule.one_f_one_b import one_f_one_b
from fourfold.passes.schedule.sends import with_sends
from fourfold.passes.schedule.solver import solved
from fourfold.passes.schedule.timing import in_flight, timed
from fourfold.passes.schedule.zero_bubble import zero_bubble

WHOLE, SPLIT = ("F", "B"), ("F", "I", "W")


def durations(stages: int, kinds: tuple[str, ...], seed: int) -> dict[tuple[int, str], float]:
    dice = Random(seed)
    return {(stage, kind): dice.uniform(0.3, 2.0) for stage in range(stages) for kind in kinds}


def orders(stage: int, micro_steps: int, kinds: tuple[str, ...]) -> Iterator[tuple[Action, ...]]:
    """Every order of a stage's actions in which those of a micro-step come in turn."""
    turns = [step for step in range(micro_steps) for _ in kinds]
    for order in sorted(set(permutations(turns))):
        left = {step: iter(kinds) for step in range(micro_steps)}
        yield tuple(Action(stage, next(left[step]), step) for step in order)


def fastest(took: dict[tuple[int, str], float], kinds: tuple[str, ...], memory: tuple[int, ...], send: float) -> float:
    """The makespan of the best of all schedules of two micro-steps."""
    best = float("inf")
    for lines in product(*(list(orders(stage, 2, kinds)) for stage in range(len(memory)))):
        schedule = Schedule.of(lines)
        if any(held > room for held, room in zip(in_flight(schedule), memory, strict=True)):
            continue
        try:
            check(schedule)
        except ScheduleError:
            continue
        best = min(best, timed(schedule, took, send=send).makespan)
    return best


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("kinds", "memory", "send"),
    [
        (WHOLE, (2, 2), 0.0),
        (WHOLE, (2, 1, 1), 0.2),
        (WHOLE, (2, 2, 2), 0.0),
        (SPLIT, (2, 2), 0.3),
        (SPLIT, (2, 1), 0.0),
    ],
)
def test_nothing_is_faster(kinds: tuple[str, ...], memory: tuple[int, ...], send: float, seed: int) -> None:
    took = durations(len(memory), kinds, seed)
    found = solved(took, 2, memory=memory, send=send)
    assert found.seconds == pytest.approx(fastest(took, kinds, memory, send), rel=1e-4)
    assert found.bound <= found.seconds
    assert found.gap < 1e-4


@pytest.mark.parametrize("seed", range(4))
def test_uneven_stages_gain(seed: int) -> None:
    """Never slower than where it starts, within the same memory, with a bound below it; and it can be executed."""
    took = durations(4, SPLIT, seed)
    found = solved(took, 6, memory=(4, 4, 4, 4), send=0.1, effort=2.0)
    assert found.seconds <= timed(zero_bubble(4, 6), took, send=0.1).makespan + 1e-9
    assert found.bound <= found.seconds + 1e-9
    assert max(in_flight(found.schedule)) <= 4
    assert timed(found.schedule, took, send=0.1).makespan == found.seconds
    check(with_sends(found.schedule), queue="rank")


def test_the_same_call_gives_the_same_schedule() -> None:
    took = durations(4, SPLIT, 7)
    first, second = (solved(took, 6, memory=(3, 3, 2, 2), send=0.1, effort=1.0) for _ in range(2))
    assert str(first.schedule) == str(second.schedule)
    assert first.bound == second.bound


def test_less_memory_takes_longer() -> None:
    took = {(stage, kind): 1.0 for stage in range(3) for kind in SPLIT}
    times = [solved(took, 5, memory=(room,) * 3).seconds for room in (1, 2, 3)]
    assert times == sorted(times, reverse=True)
    assert times[0] > times[1] > times[2]


def test_equal_stages_take_no_longer_than_1f1b() -> None:
    took = {(stage, kind): 1.0 + (kind == "B") for stage in range(4) for kind in WHOLE}
    found = solved(took, 8, memory=(4, 3, 2, 1))
    assert found.seconds == timed(one_f_one_b(4, 8), took).makespan == 33.0
    assert found.gap < 1e-4


def test_room_for_more_hides_slow_messages() -> None:
    """Messages as long as a forward: 1F1B pays for each, a schedule with more in flight does not."""
    took = {(stage, kind): 1.0 + (kind == "B") for stage in range(4) for kind in WHOLE}
    assert timed(one_f_one_b(4, 8), took, send=1.0).makespan == 49.0
    assert solved(took, 8, memory=(4, 3, 2, 1), send=1.0).seconds == 49.0
    assert solved(took, 8, memory=(7, 5, 3, 1), send=1.0).seconds == 39.0


@pytest.mark.parametrize(
    ("took", "memory", "said"),
    [
        ({(0, "F"): 1.0}, (1,), "no duration of 0B"),
        ({(0, "F"): 1.0, (0, "I"): 1.0}, (1,), "no duration of 0W"),
        ({(0, "F"): 1.0, (0, "B"): 1.0}, (0,), "room for one"),
        ({(0, "F"): 1.0, (0, "B"): -1.0}, (1,), "none below zero"),
    ],
)
def test_what_does_not_fit_together(took: dict[tuple[int, str], float], memory: tuple[int, ...], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        solved(took, 2, memory=memory)
