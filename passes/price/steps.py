"""The tasks of one optimizer step on one rank: compute, tensor communication in its path, pool communication beside it.

Forward gathers one call ahead, backward gathers before it reduces, as FSDP2 issues them; ZeRO 0 all-reduces in the last
micro-step, 1 gathers once and reduces once, 2 reduces every micro-step, 3 gathers and reduces every micro-step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fourfold.costmodel.timeline import Kind, Task, Timeline, simulate
from fourfold.hardware.machine import Overlap
from fourfold.passes.price.copies import NOTHING, Copies
from fourfold.passes.price.seconds import Times
from fourfold.passes.price.work import Replay


@dataclass(frozen=True, slots=True)
class CallCost:
    """One call on one rank: computation, tensor communication, what backward does again, the pool's collectives and the
    copies around them. `late` seconds of the computation are a split backward's W, `around` what the program does."""

    compute: Times
    tensor: Times
    replay: Replay
    gather: float
    reduce: float
    copies: Copies = NOTHING
    late: float = 0.0
    around: float = 0.0

    @property
    def path(self) -> float:
        """Seconds of one micro-step that nothing can hide: one after the other on this rank."""
        own = self.compute.forward + self.compute.backward + self.tensor.forward + self.tensor.backward
        return own + self.replay.compute + self.replay.communication + self.copies.each


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of one optimizer step, and those of it in which only communication runs."""

    seconds: float
    exposed: float

    @property
    def computing(self) -> float:
        """Seconds in which something is computed, slowed by what runs beside it."""
        return self.seconds - self.exposed


def step_time(
    calls: Sequence[CallCost],
    *,
    zero: int,
    micro_steps: int,
    optimizer: float,
    overlap: Overlap,
    blocking: bool = False,
) -> StepTime:
    """The time of a step. More than three micro-steps repeat the middle one of three.

    `blocking`: the pool's collectives hold up whoever starts them, as gloo's do.

    A micro-step repeated is never shorter than its path, nor than what it puts on the pool's queue.
    """

    def first(count: int) -> StepTime:
        line = simulate(
            tasks(calls, zero=zero, micro_steps=count, optimizer=optimizer, blocking=blocking), overlap=overlap
        )
        return StepTime(line.makespan, line.exposed)

    if micro_steps <= 3:
        return first(micro_steps)
    two, three, more = first(2), first(3), micro_steps - 3
    queued = sum(2 * (zero == 3) * call.gather + (zero >= 2) * call.reduce for call in calls)
    queued -= (zero == 3) * calls[-1].gather
    period = max(three.seconds - two.seconds, sum(call.path for call in calls), queued)
    seconds = three.seconds + more * period
    return StepTime(seconds, seconds - three.computing - more * (three.computing - two.computing))


def floor(calls: Sequence[CallCost], *, micro_steps: int, optimizer: float) -> float:
    """Seconds that `step_time` cannot go below, without a timeline."""
    return micro_steps * sum(call.path for call in calls) + optimizer


def queued(calls: Sequence[CallCost], *, zero: int, micro_steps: int) -> float:
    """Seconds of a step's collectives over the pool, which go one after the other."""
    gathers = 2 * micro_steps if zero == 3 else 1 if zero else 0
    reductions = micro_steps if zero >= 2 else 1
    # Backward begins with the call that forward ended with.
    spared = micro_steps * calls[-1].gather if zero == 3 else 0.0
    return sum(gathers * call.gather + reductions * call.reduce for call in calls) - spared


def timeline(calls: Sequence[CallCost], *, zero: int, micro_steps: int, optimizer: float, overlap: Overlap) -> Timeline:
    """The step's tasks, run."""
    return simulate(tasks(calls, zero=zero, micro_steps=micro_steps, optimizer=optimizer), overlap=overlap)


def tasks(
    calls: Sequence[CallCost], *, zero: int, micro_steps: int, optimizer: float, blocking: bool = False
) -> list[Task]:
    """All tasks in issue order; numbers in `after` are indices into the list."""
    build = _Builder(calls, zero, blocking)
    for k in range(micro_steps):
        build.micro_step(first=k == 0, last=k == micro_steps - 1)
    build.add("optimizer", "compute", optimizer, (build.previous, *build.ends))
    return build.tasks


def one_pass(calls: Sequence[CallCost], which: str, *, gathers: bool, reduces: bool) -> list[Task]:
    """The tasks of one stage's forward or backward of one micro-step, by itself."""
    build = _Builder(calls, 3 if gathers else 0, blocking=False)
    if which == "forward":
        build.forward(gathers=gathers)
    else:
        build.previous = build.add("start", "compute", 0.0, ())
        build.backward(gathers=gathers, reduces=reduces)
    return build.tasks


class _Builder:
    """Appends tasks; `previous` is the last task of the compute path."""

    def __init__(self, calls: Sequence[CallCost], zero: int, blocking: bool) -> None:
        self.calls, self.zero, self.blocking = calls, zero, blocking
        self.tasks: list[Task] = []
        self.previous: int | None = None
        self.ends: list[int] = []

    def add(self, name: str, stream: str, seconds: float, after: Sequence[int | None]) -> int:
        """One task; None in `after` is nothing to wait for."""
        kind: Kind = "compute" if stream == "compute" else "communication"
        waits = tuple(a for a in (*after, self.previous if self.blocking else None) if a is not None)
        self.tasks.append(Task(name, stream, seconds, waits, kind))
        if self.blocking:
            self.previous = len(self.tasks) - 1
        return len(self.tasks) - 1

    def micro_step(self, *, first: bool, last: bool) -> None:
        """Forward over all calls, then backward."""
        self.forward(gathers=self.zero == 3 or first)
        self.backward(gathers=self.zero == 3, reduces=last or self.zero >= 2)

    def forward(self, *, gathers: bool) -> None:
        """All calls in order, each gathered while the one before runs."""
        done: list[int] = []
        for i, call in enumerate(self.calls):
            gather = None
            if gathers and call.gather:
                ahead = done[i - 2] if i >= 2 else self.previous
                gather = self.add(f"gather {i}", "pool", call.gather, (ahead,))
            compute = call.compute.forward + (call.copies.fill if gathers else 0.0)
            self._run(f"forward {i}", compute, call.tensor.forward, gather)
            done.append(self._last())

    def backward(self, *, gathers: bool, reduces: bool) -> None:
        """All calls from the last to the first."""
        order = list(reversed(range(len(self.calls))))
        fetched: dict[int, int] = {}
        start = self._last()
        for place, i in enumerate(order):
            call = self.calls[i]
            if gathers and call.gather and i not in fetched and place > 0:
                fetched[i] = self.add(f"gather back {i}", "pool", call.gather, (start,))
            if gathers and place + 1 < len(order) and self.calls[order[place + 1]].gather:
                ahead = order[place + 1]
                fetched[ahead] = self.add(f"gather back {ahead}", "pool", self.calls[ahead].gather, (self._last(),))
            compute = call.compute.backward + call.replay.compute
            compute += call.copies.drain if reduces else call.copies.add
            compute += call.copies.fill if gathers and place > 0 else 0.0
            self._run(f"backward {i}", compute, call.tensor.backward + call.replay.communication, fetched.get(i))
            if reduces and call.reduce:
                self.ends.append(self.add(f"reduce {i}", "pool", call.reduce, (self._last(),)))

    def _run(self, name: str, compute: float, tensor: float, gather: int | None) -> None:
        self.previous = self.add(name, "compute", compute, (self.previous, gather))
        if tensor:
            self.previous = self.add(f"{name} tensor", "tensor", tensor, (self.previous,))

    def _last(self) -> int:
        assert self.previous is not None
        return self.previous
