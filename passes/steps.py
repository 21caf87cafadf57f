"""The tasks of one optimizer step on one rank: compute, tensor communication in its path, pool communication beside it.

Forward gathers one call ahead, backward gathers before it reduces, as FSDP2 issues them; ZeRO 0 all-reduces in the last
micro-step, 1 gathers once and reduces once, 2 reduces every micro-step, 3 gathers and reduces every micro-step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fourfold.costmodel.timeline import Task, Timeline, simulate
from fourfold.hardware.machine import Overlap
from fourfold.passes.seconds import Times


@dataclass(frozen=True, slots=True)
class CallCost:
    """One call on one rank: compute, tensor communication, what is replayed (compute, communication), pool collectives."""

    compute: Times
    tensor: Times
    replay: Times
    gather: float
    reduce: float


def step_time(calls: Sequence[CallCost], *, zero: int, micro_steps: int, optimizer: float, overlap: Overlap) -> tuple[float, float]:
    """Seconds of a step, and of its exposed communication. More than three micro-steps repeat the third."""
    if micro_steps <= 3:
        line = timeline(calls, zero=zero, micro_steps=micro_steps, optimizer=optimizer, overlap=overlap)
        return line.makespan, line.exposed
    two, three = (timeline(calls, zero=zero, micro_steps=k, optimizer=optimizer, overlap=overlap) for k in (2, 3))
    more = micro_steps - 3
    return (
        three.makespan + more * (three.makespan - two.makespan),
        three.exposed + more * (three.exposed - two.exposed),
    )


def timeline(calls: Sequence[CallCost], *, zero: int, micro_steps: int, optimizer: float, overlap: Overlap) -> Timeline:
    """The step's tasks, run."""
    return simulate(tasks(calls, zero=zero, micro_steps=micro_steps, optimizer=optimizer), overlap=overlap)


def tasks(calls: Sequence[CallCost], *, zero: int, micro_steps: int, optimizer: float) -> list[Task]:
    """All tasks in issue order; numbers in `after` are indices into the list."""
    build = _Builder(calls, zero)
    for k in range(micro_steps):
        build.micro_step(first=k == 0, last=k == micro_steps - 1)
    build.add("optimizer", "compute", optimizer, build.ends)
    return build.tasks


class _Builder:
    """Appends tasks; `previous` is the last task of the compute path."""

    def __init__(self, calls: Sequence[CallCost], zero: int) -> None:
        self.calls, self.zero = calls, zero
        self.tasks: list[Task] = []
        self.previous: int | None = None
        self.ends: list[int] = []

    def add(self, name: str, stream: str, seconds: float, after: Sequence[int | None]) -> int:
        """One task; None in `after` is nothing to wait for."""
        kind = "compute" if stream == "compute" else "communication"
        waits = tuple(a for a in after if a is not None)
        self.tasks.append(Task(name, stream, seconds, waits, kind))  # type: ignore[arg-type]
        return len(self.tasks) - 1

    def micro_step(self, *, first: bool, last: bool) -> None:
        """Forward over all calls, then backward."""
        self._forward(gathers=self.zero == 3 or (first and self.zero > 0))
        self._backward(gathers=self.zero == 3, reduces=last or self.zero >= 2)

    def _forward(self, *, gathers: bool) -> None:
        done: list[int] = []
        for i, call in enumerate(self.calls):
            gather = None
            if gathers and call.gather:
                ahead = done[i - 2] if i >= 2 else self.previous
                gather = self.add(f"gather {i}", "pool", call.gather, (ahead,))
            self._run(f"forward {i}", call.compute.forward, call.tensor.forward, gather)
            done.append(self._last())

    def _backward(self, *, gathers: bool, reduces: bool) -> None:
        order = list(reversed(range(len(self.calls))))
        fetched: dict[int, int] = {}
        start = self._last()
        for place, i in enumerate(order):
            call = self.calls[i]
            if gathers and i not in fetched and place > 0:
                fetched[i] = self.add(f"gather back {i}", "pool", call.gather, (start,))
            if gathers and place + 1 < len(order):
                ahead = order[place + 1]
                fetched[ahead] = self.add(f"gather back {ahead}", "pool", self.calls[ahead].gather, (self._last(),))
            compute = call.compute.backward + call.replay.forward
            self._run(f"backward {i}", compute, call.tensor.backward + call.replay.backward, fetched.get(i))
            if reduces and call.reduce:
                self.ends.append(self.add(f"reduce {i}", "pool", call.reduce, (self._last(),)))

    def _run(self, name: str, compute: float, tensor: float, gather: int | None) -> None:
        self.previous = self.add(name, "compute", compute, (self.previous, gather))
        if tensor:
            self.previous = self.add(f"{name} tensor", "tensor", tensor, (self.previous,))

    def _last(self) -> int:
        assert self.previous is not None
        return self.previous
