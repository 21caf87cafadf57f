"""Times of schedules: the fast recurrence equals the general timeline, on any durations; and it is fast."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold.costmodel.timeline import simulate
from fourfold.hardware.machine import Overlap
from fourfold.ir.schedule import Schedule
from fourfold.ir.schedule_waits import Queue
from fourfold.passes.schedule import KINDS
from fourfold.passes.schedule.one_f_one_b import one_f_one_b
from fourfold.passes.schedule.sends import with_sends
from fourfold.passes.schedule.timing import tasks, timed

EQUAL = {(stage, kind): took for stage in range(64) for kind, took in (("F", 1.0), ("I", 1.0), ("W", 1.0))}


def uneven(seed: int) -> Callable[[int, str, int], float]:
    """Durations that differ by stage, kind and micro-step."""
    return lambda stage, kind, step: 1.0 + hash((seed, stage, step, "FBIW".find(kind))) % 97 / 50


@settings(deadline=None)
@given(
    st.sampled_from(sorted(KINDS)),
    st.tuples(st.integers(1, 5), st.integers(1, 8)),
    st.integers(0, 2**16),
    st.sampled_from([0.0, 0.3, 4.0]),
    st.sampled_from(["no sends", "pair", "rank"]),
)
def test_the_recurrence_equals_the_timeline(
    kind: str, size: tuple[int, int], seed: int, send: float, messages: str
) -> None:
    schedule = KINDS[kind](*size)
    if messages != "no sends":
        schedule = with_sends(schedule)
    queue: Queue = "rank" if messages == "rank" else "pair"
    found = timed(schedule, uneven(seed), send=send, queue=queue)
    line = simulate(tasks(schedule, uneven(seed), send=send, queue=queue), overlap=Overlap())
    count = len(found.start)
    assert found.start == pytest.approx(line.start[:count])
    assert found.end == pytest.approx(line.end[:count])
    assert found.makespan == pytest.approx(line.makespan)
    assert found.busy == pytest.approx([line.busy[f"rank {rank}"] for rank in range(schedule.ranks)])


@given(st.integers(2, 6), st.integers(1, 8), st.integers(0, 2**16), st.floats(0.0, 3.0))
def test_queues_only_cost_time(p: int, m: int, seed: int, send: float) -> None:
    """Messages one after the other, and only once both ends came to them, are no earlier than messages that fly."""
    bare = one_f_one_b(p, m)
    free, queued = timed(bare, uneven(seed), send=send), timed(with_sends(bare), uneven(seed), send=send)
    assert queued.makespan >= free.makespan - 1e-9


def test_a_message_takes_its_time() -> None:
    """Two stages, one micro-step: forward, message, forward, backward, message, backward."""
    schedule = with_sends(one_f_one_b(2, 1))
    found = timed(schedule, {(0, "F"): 1.0, (0, "B"): 2.0, (1, "F"): 4.0, (1, "B"): 8.0}, send=lambda s, _: 0.5 + s)
    assert found.makespan == 1.0 + 0.5 + 4.0 + 8.0 + 1.5 + 2.0
    assert found.busy == (3.0, 12.0)
    assert found.bubbles == (14.0, 5.0)


def test_the_times_as_text() -> None:
    assert str(timed(one_f_one_b(2, 2), EQUAL)) == (
        "rank 0       6.000000 s busy    3.000000 s bubble\n"
        "rank 1       6.000000 s busy    3.000000 s bubble\n"
        "total        9.000000 s, 33.3% bubble, in flight 2 1"
    )


@pytest.mark.parametrize("lowered", [False, True])
def test_large_pipelines_are_timed_at_once(lowered: bool) -> None:
    """64 ranks, 256 micro-steps. The bound leaves room for a busy machine: alone it takes 0.15 s, with sends 0.5 s."""
    schedule = _large(lowered)
    begun = time.process_time()
    timed(schedule, EQUAL)
    assert time.process_time() - begun < 2.0


def _large(lowered: bool) -> Schedule:
    schedule = one_f_one_b(64, 256)
    return with_sends(schedule) if lowered else schedule
