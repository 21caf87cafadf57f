"""Generated schedules: they run, their text reads back, their bubbles are the closed forms."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold.ir.schedule import Schedule, ScheduleError
from fourfold.ir.schedule_checks import check
from fourfold.passes.schedule import KINDS
from fourfold.passes.schedule.interleaved import interleaved
from fourfold.passes.schedule.one_f_one_b import one_f_one_b
from fourfold.passes.schedule.sends import with_sends
from fourfold.passes.schedule.timing import in_flight, timed
from fourfold.passes.schedule.zero_bubble import zero_bubble

RANKS = range(1, 9)
STEPS = range(1, 17)


def lasts(forward: float, inputs: float, weights: float) -> Callable[[int, str, int], float]:
    """The same durations on every stage, for every micro-step."""
    return lambda stage, kind, step: {"F": forward, "I": inputs, "W": weights, "B": inputs + weights}.get(kind, 0.0)


EQUAL = lasts(1.0, 1.0, 1.0)


@pytest.mark.parametrize("kind", ["gpipe", "1f1b"])
def test_the_bubble_is_the_closed_form(kind: str) -> None:
    for p in RANKS:
        for m in STEPS:
            found = timed(KINDS[kind](p, m), EQUAL)
            assert found.bubble == pytest.approx((p - 1) / (m + p - 1), abs=1e-12), (p, m)
            assert found.makespan == pytest.approx(3 * (m + p - 1))


def test_the_interleaved_bubble_is_the_closed_form_divided_by_the_stages_of_a_rank() -> None:
    """Over the work. With fewer micro-steps than ranks, each round trip after the first waits for p - m more."""
    for p in RANKS:
        for m in STEPS:
            for v in range(1, 5):
                found = timed(interleaved(p, m, v), EQUAL)
                short = (v - 1) * max(0, p - m)
                assert found.bubbles[0] / found.busy[0] == pytest.approx((p - 1 + short) / (v * m), abs=1e-12), (
                    p,
                    m,
                    v,
                )


@pytest.mark.parametrize("times", [(1.0, 1.0, 1.0), (1.0, 1.2, 0.8), (1.0, 1.3, 0.6)])
def test_the_zero_bubble_is_what_is_left_of_the_backward(times: tuple[float, float, float]) -> None:
    forward, inputs, weights = times
    for p in RANKS:
        for m in range(p, 17):
            found = timed(zero_bubble(p, m), lasts(*times))
            assert found.bubbles[0] == pytest.approx((p - 1) * (forward + inputs - weights), abs=1e-9), (p, m)


@given(st.integers(2, 8), st.integers(1, 24), *[st.floats(0.1, 3.0)] * 3)
def test_zero_bubble_is_faster_than_1f1b_and_holds_no_more(p: int, m: int, f: float, i: float, w: float) -> None:
    split, whole = timed(zero_bubble(p, m), lasts(f, i, w)), timed(one_f_one_b(p, m), lasts(f, i, w))
    assert split.makespan < whole.makespan
    assert max(split.in_flight) == max(whole.in_flight) == min(p, m)


def test_what_is_in_flight() -> None:
    for p in RANKS:
        for m in STEPS:
            assert in_flight(KINDS["gpipe"](p, m)) == (m,) * p
            assert in_flight(KINDS["1f1b"](p, m)) == tuple(min(p - stage, m) for stage in range(p))


@st.composite
def generated(draw: st.DrawFn) -> Schedule:
    kind = draw(st.sampled_from(sorted(KINDS)))
    return KINDS[kind](draw(st.integers(1, 10)), draw(st.integers(1, 24)))


@settings(deadline=None)
@given(generated(), st.integers(0, 3))
def test_every_schedule_runs_and_reads_back(schedule: Schedule, ahead: int) -> None:
    check(schedule)
    assert Schedule.parse(str(schedule)) == schedule
    sent = with_sends(schedule, ahead=ahead)
    check(sent, queue="pair")
    check(sent, queue="rank")
    assert Schedule.parse(str(sent)) == sent


@given(generated(), st.integers(0, 3))
def test_free_messages_cost_nothing(schedule: Schedule, ahead: int) -> None:
    """Nor does their order in the queues: a schedule with sends that take no time lasts as long as one without."""
    if ahead == 0:
        assert timed(with_sends(schedule, ahead=0), EQUAL).makespan >= timed(schedule, EQUAL).makespan
    else:
        assert timed(with_sends(schedule, ahead=ahead), EQUAL).makespan == timed(schedule, EQUAL).makespan


def test_sends_are_added_once() -> None:
    with pytest.raises(ScheduleError, match=r"schedule of N, F, B, I and W alone"):
        with_sends(with_sends(KINDS["1f1b"](2, 2)))


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize(("ranks", "micro_steps"), [(0, 4), (2, 0)])
def test_something_must_be_done(kind: str, ranks: int, micro_steps: int) -> None:
    with pytest.raises(ScheduleError, match="at least 1 rank and 1 micro-step"):
        KINDS[kind](ranks, micro_steps)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_text(kind: str, golden: Callable[..., None]) -> None:
    schedule = KINDS[kind](3, 4)
    golden(str(schedule), part="computes")
    golden(str(with_sends(schedule)), part="sends")
