"""How long a schedule takes: when each action runs, the bubbles of each rank, the micro-steps in flight."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from fourfold.costmodel.timeline import Task
from fourfold.ir.schedule import COMPUTE, SENDS, Action, Schedule
from fourfold.ir.schedule_waits import Queue, Waits, waits

Durations = Mapping[tuple[int, str], float] | Callable[[int, str, int], float]
"""Seconds by (stage, kind), or a function of stage, kind and micro-step."""
Send = float | Callable[[int, int], float]
"""Seconds of a message, or a function of the stage that sends and the micro-step."""


@dataclass(frozen=True, slots=True)
class Timed:
    """When each action runs: `start` and `end` in seconds, in the order of `graph.actions`.

    `busy` is the time each rank computes, `in_flight` the most micro-steps a stage holds at once: begun, and the
    backward (or W, where it is split off) not yet done. N holds none.
    """

    schedule: Schedule
    graph: Waits
    start: tuple[float, ...]
    end: tuple[float, ...]
    busy: tuple[float, ...]
    in_flight: tuple[int, ...]

    @property
    def makespan(self) -> float:
        return max(self.end, default=0.0)

    @property
    def bubbles(self) -> tuple[float, ...]:
        """Seconds of the step in which each rank computes nothing."""
        return tuple(self.makespan - busy for busy in self.busy)

    @property
    def bubble(self) -> float:
        """The share of all ranks' time that is bubble."""
        return sum(self.bubbles) / (self.makespan * len(self.busy)) if self.makespan else 0.0

    def __str__(self) -> str:
        rows = [
            f"rank {rank:<4}{busy:>12.6f} s busy{bubble:>12.6f} s bubble"
            for rank, (busy, bubble) in enumerate(zip(self.busy, self.bubbles, strict=True))
        ]
        held = " ".join(map(str, self.in_flight))
        return "\n".join([*rows, f"total    {self.makespan:>12.6f} s, {self.bubble:.1%} bubble, in flight {held}"])


def timed(schedule: Schedule, durations: Durations, *, send: Send = 0.0, queue: Queue = "pair") -> Timed:
    """The times of a schedule that passes `check`, each action as early as it can be.

    A message takes `send`, after both ends came to it, one at a time in a queue; in a schedule without SEND it takes
    `send` from the producer on. Where durations lack B they may give I and W instead, whose sum it is; where they lack
    N it takes as long as F; gathers and reductions they lack take no time. Equal to `simulate(tasks(...))` without
    slow-down by overlap, and faster.
    """
    graph = _waits(schedule, queue)
    seconds = _seconds(graph.actions, durations, send)
    lag = _lags(graph, send)
    start, end = [0.0] * len(seconds), [0.0] * len(seconds)
    for node in graph.order():
        begun = 0.0
        for before in graph.after[node]:
            ready = end[before]
            if lag and (before, node) in lag:
                ready += lag[before, node]
            if ready > begun:
                begun = ready
        start[node] = begun
        end[node] = begun + seconds[node]
    busy = [0.0] * schedule.ranks
    for action, rank, took in zip(graph.actions, graph.ranks, seconds, strict=True):
        busy[rank] += took if action.kind in COMPUTE else 0.0
    return Timed(schedule, graph, tuple(start), tuple(end), tuple(busy), in_flight(schedule))


@lru_cache(maxsize=64)
def _waits(schedule: Schedule, queue: Queue) -> Waits:
    """A schedule is timed with many durations: what waits for what stays."""
    return waits(schedule, queue=queue)


def tasks(schedule: Schedule, durations: Durations, *, send: Send = 0.0, queue: Queue = "pair") -> list[Task]:
    """The same as tasks of a timeline: task i is `graph.actions[i]`, then a task for each message of no SEND."""
    graph = waits(schedule, queue=queue)
    seconds = _seconds(graph.actions, durations, send)
    lag = _lags(graph, send)
    late = {edge: len(seconds) + number for number, edge in enumerate(lag)}
    found = []
    for node, (action, rank, took) in enumerate(zip(graph.actions, graph.ranks, seconds, strict=True)):
        name = f"rank {rank} {action}"
        after = tuple(late.get((before, node), before) for before in graph.after[node])
        if action.kind in COMPUTE:
            found.append(Task(name, f"rank {rank}", took, after))
        else:
            found.append(Task(name, name, took, after, "communication"))
    for (before, node), took in lag.items():
        name = f"{graph.actions[before]} to {graph.actions[node]}"
        found.append(Task(name, name, took, (before,), "communication"))
    return found


def in_flight(schedule: Schedule) -> tuple[int, ...]:
    """The most micro-steps each stage holds at once; the order of a line decides it, not the durations."""
    held, most = [0] * schedule.stages, [0] * schedule.stages
    for line in schedule.lines:
        for action in line:
            if action.kind == "F":
                held[action.stage] += 1
                most[action.stage] = max(most[action.stage], held[action.stage])
            elif action.kind in ("B", "W"):
                held[action.stage] -= 1
    return tuple(most)


def _seconds(actions: Sequence[Action], durations: Durations, send: Send) -> list[float]:
    """How long each action takes by itself."""
    return [_send(action, send) if action.kind in SENDS else _compute(action, durations) for action in actions]


def _send(action: Action, send: Send) -> float:
    return send(action.stage, action.micro_step) if callable(send) else send


def _compute(action: Action, durations: Durations) -> float:
    if callable(durations):
        return durations(action.stage, action.kind, action.micro_step)
    found = durations.get((action.stage, action.kind))
    if found is not None:
        return found
    if action.kind == "N":
        return durations[action.stage, "F"]
    if action.kind == "B":
        return durations[action.stage, "I"] + durations[action.stage, "W"]
    assert action.kind not in COMPUTE, f"no duration of {action}"
    return 0.0


def _lags(graph: Waits, send: Send) -> dict[tuple[int, int], float]:
    """Seconds between a compute and one on another rank that reads it without a SEND between them."""
    if send == 0.0 or any(action.kind in SENDS for action in graph.actions):
        return {}
    return {
        (before, node): _send(graph.actions[before], send)
        for node, needed in enumerate(graph.after)
        for before in needed
        if graph.ranks[before] != graph.ranks[node]
    }
