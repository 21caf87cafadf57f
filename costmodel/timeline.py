"""When tasks on streams run: each stream in its given order, tasks wait for others, overlap slows both down.

A stream is anything that does one thing at a time: the compute stream of a device, the queue of one
communicator. The same timeline is asked hundreds of times in a search, so it is event-driven.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Literal

from fourfold.hardware.machine import Overlap

Kind = Literal["compute", "communication"]


@dataclass(frozen=True, slots=True)
class Task:
    """Work of `duration` seconds (run alone) on one stream, after the tasks named or numbered in `after`."""

    name: str
    stream: str
    duration: float
    after: tuple[str | int, ...] = ()
    kind: Kind = "compute"


@dataclass(frozen=True, slots=True)
class Timeline:
    """When each task ran: `start` and `end` in seconds, in the order of the tasks.

    `busy` is the time each stream ran something; `exposed` the time in which a communication ran
    and no compute did: what communication really costs.
    """

    tasks: tuple[Task, ...]
    start: tuple[float, ...]
    end: tuple[float, ...]
    busy: Mapping[str, float]
    exposed: float

    @property
    def makespan(self) -> float:
        return max(self.end, default=0.0)

    def __str__(self) -> str:
        share = {stream: seconds / self.makespan if self.makespan else 0.0 for stream, seconds in self.busy.items()}
        lines = [f"{stream:<16}{self.busy[stream]:>12.6f} s busy  {share[stream]:>4.0%}" for stream in self.busy]
        total = f"{'total':<16}{self.makespan:>12.6f} s, {self.exposed:.6f} s of communication exposed"
        return "\n".join([*lines, total])


def simulate(tasks: Sequence[Task], *, overlap: Overlap) -> Timeline:
    """The one timeline that follows from the order of `tasks` on each stream and their dependences.

    A task starts when its stream is free and all its predecessors ended. While some compute and some
    communication run at once, every compute task goes on at 1 / compute_slowdown of its speed and
    every communication at 1 / collective_slowdown; exact, as speeds change only when a task starts or ends.
    Costs O(n log n). Raises ValueError for a name that is unknown or stands for two tasks and is
    waited for, and for a cycle (through dependences or the order on a stream), naming its tasks.
    """
    followers, waiting = _edges(tasks)
    start, end, exposed, done = _run(tasks, followers=followers, waiting=waiting, overlap=overlap)
    if done < len(tasks):
        raise ValueError(f"these tasks wait for each other: {' -> '.join(_cycle(tasks, followers, waiting))}")
    busy: dict[str, float] = {}
    for task, begun, ended in zip(tasks, start, end, strict=True):
        busy[task.stream] = busy.get(task.stream, 0.0) + (ended - begun)
    return Timeline(tuple(tasks), tuple(start), tuple(end), busy, exposed)


class _Lane:
    """The running tasks of one kind, on a clock that only advances as they do.

    All tasks of a lane go at the same speed, so a change of speed leaves their order of ending as it
    is: each is kept with the reading of this clock at which it ends.
    """

    __slots__ = ("ending", "progress", "slowdown")

    def __init__(self, slowdown: float) -> None:
        assert slowdown > 0, slowdown
        self.slowdown = slowdown
        self.progress = 0.0
        self.ending: list[tuple[float, int]] = []

    def begin(self, index: int, duration: float) -> None:
        heappush(self.ending, (self.progress + duration, index))

    def until_next(self, *, slowed: bool) -> float:
        """Seconds to the next end, at the present speed."""
        left = self.ending[0][0] - self.progress
        return left * self.slowdown if slowed else left

    def advance(self, seconds: float, *, slowed: bool) -> list[int]:
        """Moves on by `seconds`, at most to the next end; returns the tasks that ended."""
        if not self.ending:
            return []
        # Compared before dividing, so that the task that set the step ends whatever the rounding.
        if seconds >= self.until_next(slowed=slowed):
            self.progress = self.ending[0][0]
        else:
            self.progress += seconds / self.slowdown if slowed else seconds
        ended = []
        while self.ending and self.ending[0][0] <= self.progress:
            ended.append(heappop(self.ending)[1])
        return ended


def _run(
    tasks: Sequence[Task], *, followers: Sequence[Sequence[int]], waiting: list[int], overlap: Overlap
) -> tuple[list[float], list[float], float, int]:
    """Start and end of each task, the exposed communication, and how many tasks ran. Counts `waiting` down."""
    compute, communication = _Lane(overlap.compute_slowdown), _Lane(overlap.collective_slowdown)
    start, end = [0.0] * len(tasks), [0.0] * len(tasks)
    ready = [index for index, count in enumerate(waiting) if count == 0]
    now = exposed = 0.0
    done = 0
    while True:
        for index in ready:
            start[index] = now
            lane = compute if tasks[index].kind == "compute" else communication
            lane.begin(index, tasks[index].duration)
        busy = [lane for lane in (compute, communication) if lane.ending]
        if not busy:
            return start, end, exposed, done
        slowed = len(busy) == 2
        step = min(lane.until_next(slowed=slowed) for lane in busy)
        now += step
        exposed += 0.0 if compute.ending else step
        ended = compute.advance(step, slowed=slowed) + communication.advance(step, slowed=slowed)
        done += len(ended)
        ready = []
        for index in ended:
            end[index] = now
            for follower in followers[index]:
                waiting[follower] -= 1
                if waiting[follower] == 0:
                    ready.append(follower)


def _edges(tasks: Sequence[Task]) -> tuple[list[list[int]], list[int]]:
    """The tasks that wait for each task, and how many each waits for; the one before it on its stream counts."""
    numbers = _numbers(tasks)
    followers: list[list[int]] = [[] for _ in tasks]
    waiting = [0] * len(tasks)
    last: dict[str, int] = {}
    for index, task in enumerate(tasks):
        assert 0.0 <= task.duration < float("inf"), f"{task.name} lasts {task.duration}"
        for needed in task.after:
            followers[_number(needed, task=task, numbers=numbers, count=len(tasks))].append(index)
        before = last.get(task.stream)
        if before is not None:
            followers[before].append(index)
        waiting[index] = len(task.after) + (before is not None)
        last[task.stream] = index
    return followers, waiting


def _numbers(tasks: Sequence[Task]) -> Mapping[str, int | None]:
    """Name to number; None for a name that stands for several tasks."""
    numbers: dict[str, int | None] = {}
    for index, task in enumerate(tasks):
        numbers[task.name] = None if task.name in numbers else index
    return numbers


def _number(needed: str | int, *, task: Task, numbers: Mapping[str, int | None], count: int) -> int:
    if isinstance(needed, int):
        if 0 <= needed < count:
            return needed
        raise ValueError(f"{task.name} waits for task number {needed}; there are {count}")
    if needed not in numbers:
        raise ValueError(f"{task.name} waits for {needed}, which is no task")
    number = numbers[needed]
    if number is None:
        raise ValueError(f"{task.name} waits for {needed}, the name of several tasks; give its number instead")
    return number


def _cycle(tasks: Sequence[Task], followers: Sequence[Sequence[int]], waiting: Sequence[int]) -> list[str]:
    """Names along one cycle among the tasks that never ran, each before the next, the first repeated at the end."""
    before: dict[int, int] = {}
    for index, after in enumerate(followers):
        if waiting[index] > 0:
            before.update(dict.fromkeys(after, index))
    at = next(index for index, count in enumerate(waiting) if count > 0)
    seen: dict[int, None] = {}
    while at not in seen:
        seen[at] = None
        at = before[at]
    walked = list(seen)
    loop = [at, *reversed(walked[walked.index(at) :])]
    return [tasks[index].name for index in loop]
