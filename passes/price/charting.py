"""The timeline behind a plan's price, drawn: a step on each place of the line of stages, stream by stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from fourfold.costmodel.timeline import Timeline, simulate
from fourfold.hardware.topology import Machine
from fourfold.ir.chart import COMPUTE, Bar, Chart
from fourfold.ir.plan import Plan
from fourfold.ir.schedule import COMPUTE as COMPUTES
from fourfold.passes.price.in_flight import in_flight
from fourfold.passes.price.pipelined import STEADY, ended, timed_schedule
from fourfold.passes.price.price import Priced, priced
from fourfold.passes.price.steps import tasks
from fourfold.passes.schedule.timing import Timed

DRAWN = 3
"""Micro-steps drawn where there are no stages: the first, one of those that repeat, the last."""
PREDICTED = "predicted"


@dataclass(frozen=True, slots=True)
class Simulated:
    """One step: its chart, which draws `drawn` micro-steps, and figures of the whole step in seconds.

    The other `repeated` micro-steps take `period` each. `bubble` is the share of the places' time, the optimizer's
    aside, in which nothing runs; `in_flight` the most micro-steps each place keeps; `exposed` the communication that
    nothing hides on the busiest place.
    """

    chart: Chart
    step: float
    drawn: int
    repeated: int
    period: float
    bubble: float
    in_flight: tuple[float, ...]
    exposed: float


def simulated(plan: Plan, *, whole: bool = False) -> Simulated:
    """The step that a plan's price stands for. `whole` draws every micro-step instead of those until they repeat."""
    one = priced(plan, Machine.from_snapshot(plan.machine))
    return _staged(one, whole=whole) if plan.mesh.pp > 1 else _alone(one, whole=whole)


def _staged(one: Priced, *, whole: bool) -> Simulated:
    plan, steps, places = one.plan, one.plan.micro_steps, range(one.plan.mesh.pp)
    drawn = steps if whole or plan.order else min(steps, STEADY * len(places))
    line = timed_schedule(replace(plan, micro_steps=drawn), one.stages, send=one.send)
    paths = [sum(stage.path for stage in one.stages[place :: len(places)]) for place in places]
    lasts = [one.lines[place].optimizer + one.talk for place in places]
    reduced = ended(line, one.stages)
    ends = (Bar(place, COMPUTE, "optimizer", reduced, reduced + lasts[place], "optimizer") for place in places)
    repeated = steps - drawn
    period = (one.step.seconds - reduced - max(lasts)) / repeated if repeated else 0.0
    busy = sum(line.busy) + repeated * sum(paths)
    bubble = 1.0 - busy / (len(places) * (line.makespan + repeated * period))
    names = {place: f"place {place}" for place in places}
    chart = Chart(PREDICTED, (*bars_of_schedule(line), *ends), reduced + max(lasts), names)
    kept = tuple(in_flight(plan, place) for place in places)
    return Simulated(chart, one.step.seconds, drawn, repeated, period, bubble, kept, _exposed(one))


def bars_of_schedule(line: Timed) -> Iterator[Bar]:
    """A bar for each compute, and one for each message on the queue to the place that takes it."""
    graph, schedule = line.graph, line.schedule
    for action, rank, start, stop in zip(graph.actions, graph.ranks, line.start, line.end, strict=True):
        if stop <= start:
            continue
        turn, step = action.stage // schedule.ranks, action.micro_step
        if action.kind in COMPUTES:
            yield Bar(rank, COMPUTE, str(action), start, stop, action.kind, turn, step)
        elif action.peer is not None:
            stream = f"send to {schedule.owner[action.peer]}"
            yield Bar(rank, stream, str(action), start, stop, "send", turn, step)


def _alone(one: Priced, *, whole: bool) -> Simulated:
    plan, steps = one.plan, one.plan.micro_steps
    drawn = steps if whole else min(steps, DRAWN)
    last = one.optimizer + one.talk
    built = tasks(one.calls, zero=plan.zero, micro_steps=drawn, optimizer=last, blocking=one.blocking)
    line = simulate(built, overlap=one.overlap)
    names = [call.prefix or call.block for call in plan.graph.calls]
    chart = Chart(PREDICTED, tuple(bars_of_tasks(line, names)), line.makespan, {0: "rank 0"})
    repeated = steps - drawn
    period = (one.step.seconds - line.makespan) / repeated if repeated else 0.0
    return Simulated(chart, one.step.seconds, drawn, repeated, period, 0.0, (1.0,), _exposed(one))


def bars_of_tasks(line: Timeline, names: Sequence[str]) -> Iterator[Bar]:
    """A bar for each task of `steps.tasks`; `names` are those of the calls."""
    step = -1
    for task, start, stop in zip(line.tasks, line.start, line.end, strict=True):
        word, *rest = task.name.split()
        step += task.name == "forward 0"
        number = next((int(text) for text in rest if text.isdigit()), None)
        name = task.name if number is None else task.name.replace(str(number), names[number])
        if stop > start:
            # A gather for the first call is issued ahead of it.
            yield Bar(0, task.stream, name, start, stop, _kind(word, task.stream), 0, max(step, 0))


def _kind(word: str, stream: str) -> str:
    if stream == "tensor":
        return stream
    return {"forward": "F", "backward": "B"}.get(word, word)


def _exposed(one: Priced) -> float:
    parts = dict(one.estimate().parts)
    return parts.get("tensor communication", 0.0) + parts.get("data communication", 0.0)
