"""The timeline: equal to a slow clock that ticks, bounded by the sums, and exact where a sum is the answer."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourfold.costmodel.timeline import Task, Timeline, simulate
from fourfold.hardware.machine import Overlap

NONE = Overlap()
TICK = 1 / 64


@st.composite
def task_lists(draw: st.DrawFn) -> list[Task]:
    """Up to nine tasks on two compute and two communication streams; each waits only for earlier ones."""
    tasks: list[Task] = []
    for index in range(draw(st.integers(1, 9))):
        after = draw(st.lists(st.integers(0, index - 1), max_size=3, unique=True)) if index else []
        stream = draw(st.sampled_from(["compute", "compute2", "gather", "reduce"]))
        named = tuple(f"t{number}" if draw(st.booleans()) else number for number in after)
        duration = draw(st.integers(0, 4)) / 2
        kind = "compute" if stream.startswith("compute") else "communication"
        tasks.append(Task(f"t{index}", stream, duration, named, "compute" if kind == "compute" else "communication"))
    return tasks


slowdowns = st.sampled_from([1.0, 1.25, 1.5, 2.0])
overlaps = st.builds(Overlap, compute_slowdown=slowdowns, collective_slowdown=slowdowns)


def predecessors(tasks: list[Task], index: int) -> set[int]:
    """Tasks that must end before task `index` starts: those it names and the one before it on its stream."""
    needed = {int(item[1:]) if isinstance(item, str) else item for item in tasks[index].after}
    before = [number for number in range(index) if tasks[number].stream == tasks[index].stream]
    return needed | set(before[-1:])


def ticking(tasks: list[Task], overlap: Overlap) -> tuple[list[float], float]:
    """The obvious simulator: every tick, start what may start, then let all that runs go on by one tick."""
    left: dict[int, float] = {}
    end: dict[int, float] = {}
    now = exposed = 0.0
    while len(end) < len(tasks):
        for index, task in enumerate(tasks):
            if index not in left and predecessors(tasks, index) <= end.keys():
                left[index] = task.duration
            if index in left and index not in end and left[index] <= 1e-9:
                end[index] = now
        running = [index for index in left if index not in end]
        kinds = {tasks[index].kind for index in running}
        for index in running:
            slowdown = overlap.compute_slowdown if tasks[index].kind == "compute" else overlap.collective_slowdown
            left[index] -= TICK / (slowdown if len(kinds) == 2 else 1.0)
        exposed += TICK if kinds == {"communication"} else 0.0
        now += TICK if running else 0.0
    return [end[index] for index in range(len(tasks))], exposed


@given(tasks=task_lists(), overlap=overlaps)
def test_equals_the_ticking_clock(tasks: list[Task], overlap: Overlap) -> None:
    timeline = simulate(tasks, overlap=overlap)
    end, exposed = ticking(tasks, overlap)
    # The clock sees an end up to one tick late; the delay is handed on along at most every task.
    late = 2 * TICK * len(tasks)
    assert timeline.end == pytest.approx(end, abs=late)
    assert timeline.exposed == pytest.approx(exposed, abs=late)


@given(tasks=task_lists())
def test_equals_the_ticking_clock_to_the_tick_without_slowdown(tasks: list[Task]) -> None:
    timeline = simulate(tasks, overlap=NONE)
    end, exposed = ticking(tasks, NONE)
    assert timeline.end == pytest.approx(end)
    assert timeline.exposed == pytest.approx(exposed)


@given(tasks=task_lists(), overlap=overlaps)
def test_bounds_and_order(tasks: list[Task], overlap: Overlap) -> None:
    timeline = simulate(tasks, overlap=overlap)
    longest = critical_path(tasks)
    worst = max(overlap.compute_slowdown, overlap.collective_slowdown)
    assert longest - 1e-9 <= timeline.makespan <= worst * sum(task.duration for task in tasks) + 1e-9
    for stream, busy in timeline.busy.items():
        alone = sum(task.duration for task in tasks if task.stream == stream)
        assert alone - 1e-9 <= busy <= timeline.makespan + 1e-9
    assert 0 <= timeline.exposed <= timeline.makespan + 1e-9
    for index, task in enumerate(tasks):
        ready = max((timeline.end[number] for number in predecessors(tasks, index)), default=0.0)
        assert timeline.start[index] == pytest.approx(ready)  # never idle without a reason
        assert timeline.end[index] - timeline.start[index] >= task.duration - 1e-9


@given(durations=st.lists(st.floats(0, 10), min_size=1), overlap=overlaps)
def test_a_chain_takes_the_sum_whatever_the_streams(durations: list[float], overlap: Overlap) -> None:
    tasks = [
        Task(f"t{i}", f"s{i % 3}", seconds, (i - 1,) if i else (), "communication" if i % 2 else "compute")
        for i, seconds in enumerate(durations)
    ]
    timeline = simulate(tasks, overlap=overlap)
    assert timeline.makespan == pytest.approx(sum(durations))
    assert timeline.exposed == pytest.approx(sum(durations[1::2]))


def test_overlap_slows_both_only_while_both_run() -> None:
    tasks = [Task("matmul", "compute", 4.0), Task("gather", "comm", 1.0, (), "communication")]
    timeline = simulate(tasks, overlap=Overlap(compute_slowdown=1.25, collective_slowdown=2.0))
    # Together for 2 s, in which the product gets 1.6 s of its work done; then 2.4 s alone.
    assert timeline.end == pytest.approx((4.4, 2.0))
    assert timeline.exposed == 0


def test_two_communications_at_once_are_exposed_once() -> None:
    tasks = [Task("a", "one", 2.0, (), "communication"), Task("b", "two", 3.0, (), "communication")]
    assert simulate([*tasks, Task("c", "compute", 1.0, ("b",))], overlap=NONE).exposed == 3.0


def test_prefetch_hides_a_gather() -> None:
    def block(index: int, first: tuple[int, ...]) -> tuple[Task, Task]:
        gather = Task(f"gather{index}", "comm", 1.0, first, "communication")
        return gather, Task(f"forward{index}", "compute", 2.0, (f"gather{index}",))

    eager = [task for index in range(4) for task in block(index, ())]
    lazy = [task for index in range(4) for task in block(index, (2 * index - 1,) if index else ())]
    assert simulate(eager, overlap=NONE).makespan == 9.0
    assert simulate(lazy, overlap=NONE).makespan == 12.0


def test_cycles_and_wrong_names_are_named() -> None:
    cycle = [
        Task("a", "x", 1.0, ("c",)),
        Task("b", "y", 1.0, ("a",)),
        Task("c", "z", 1.0, (2,)),
    ]
    with pytest.raises(ValueError, match="wait for each other: ") as caught:
        simulate([Task("free", "z", 1.0), *cycle, Task("behind", "z", 1.0)], overlap=NONE)
    walk = str(caught.value).removeprefix("these tasks wait for each other: ").split(" -> ")
    assert walk[0] == walk[-1] and set(walk) == {"a", "b", "c"}
    assert set(pairwise(walk)) == {("a", "b"), ("b", "c"), ("c", "a")}
    with pytest.raises(ValueError, match="first -> second -> first"):  # the order on the stream is a dependence
        simulate([Task("first", "s", 1.0, ("second",)), Task("second", "s", 1.0)], overlap=NONE)
    with pytest.raises(ValueError, match="a waits for ghost, which is no task"):
        simulate([Task("a", "s", 1.0, ("ghost",))], overlap=NONE)
    with pytest.raises(ValueError, match="a waits for task number 3; there are 1"):
        simulate([Task("a", "s", 1.0, (3,))], overlap=NONE)
    with pytest.raises(ValueError, match="twin, the name of several tasks"):
        simulate([Task("twin", "s", 1.0), Task("twin", "s", 1.0), Task("b", "s", 1.0, ("twin",))], overlap=NONE)


def test_no_tasks_and_text() -> None:
    assert simulate([], overlap=NONE) == Timeline((), (), (), {}, 0.0)
    tasks = [Task("f", "compute", 3.0), Task("g", "comm", 1.0, ("f",), "communication")]
    assert str(simulate(tasks, overlap=NONE)) == (
        "compute             3.000000 s busy   75%\n"
        "comm                1.000000 s busy   25%\n"
        "total               4.000000 s, 1.000000 s of communication exposed"
    )


def test_cost_grows_with_the_tasks_not_their_square() -> None:
    """Eight times the layers take about eight times as long, not sixty-four; the best of five runs of each."""
    few, many = (min(_timed(sharded_step(layers)) for _ in range(5)) for layers in (60, 480))
    assert many < 24 * few


def sharded_step(layers: int) -> list[Task]:
    """Forward and backward of sharded layers: gathers ahead, reductions behind, ten computes a layer."""
    tasks: list[Task] = []
    for direction, computes in (("forward", 3), ("backward", 7)):
        for layer in range(layers) if direction == "forward" else reversed(range(layers)):
            gather = len(tasks)
            tasks.append(Task(f"gather {direction} {layer}", "gather", 1e-3, (), "communication"))
            tasks += [Task(f"{direction} {layer} {op}", "compute", 8e-4, (gather,)) for op in range(computes)]
            if direction == "backward":
                tasks.append(Task(f"reduce {layer}", "reduce", 1e-3, (len(tasks) - 1,), "communication"))
    return tasks


def critical_path(tasks: list[Task]) -> float:
    finish: list[float] = []
    for index, task in enumerate(tasks):
        finish.append(max((finish[number] for number in predecessors(tasks, index)), default=0.0) + task.duration)
    return max(finish)


def _timed(tasks: list[Task]) -> float:
    began = time.perf_counter()
    simulate(tasks, overlap=Overlap(1.05, 1.13))
    return time.perf_counter() - began
