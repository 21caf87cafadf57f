"""A line of a schedule is done word for word: whatever order of whole and split backwards its text names."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fourfold.backends.communication.wire import Wire
from fourfold.backends.step.pipeline import Executor, Tensors
from fourfold.ir.schedule import Action, Schedule
from fourfold.ir.schedule_checks import check


class Noted(torch.autograd.Function):
    """x, doubled; notes when its backward runs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, note: Any) -> Tensor:
        ctx.note = note
        return 2.0 * x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        ctx.note()
        return 2.0 * grads[0], None


@dataclass
class Notes:
    """Stages that double a number, and the words they were asked, in order."""

    stages: int
    words: list[str] = field(default_factory=list)
    flags: list[tuple[str, bool, bool]] = field(default_factory=list)
    start: Tensor = field(default_factory=lambda: torch.ones((), requires_grad=True))

    def forward(self, stage: int, micro_step: int, received: Tensors) -> Tensors:
        self.words.append(f"{stage}F{micro_step}")
        x = received[0] if received else self.start
        return (Noted.apply(x, lambda: self.words.append(f"{stage}I{micro_step}")),)  # type: ignore[no-untyped-call]

    def expected(self, stage: int, micro_step: int) -> Tensors:
        raise AssertionError("nothing is sent")

    def weigh(self, stage: int, micro_step: int) -> None:
        self.words.append(f"{stage}W{micro_step}")

    def about_to(self, stage: int, *, last: bool, final: bool) -> None:
        self.flags.append((str(stage), last, final))

    def crosses(self, stage: int) -> tuple[bool, ...]:
        return (True,)

    def reduce_tied(self, stage: int) -> None:
        self.words.append(f"{stage}REDUCE_TIED")


@st.composite
def orders(draw: st.DrawFn) -> Schedule:
    """One rank with some stages: any order of their actions that does nothing before what it needs."""
    stages, steps = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    chains = []
    for step in range(steps):
        split = [draw(st.booleans()) for _ in range(stages)]
        chain = [Action(stage, "F", step) for stage in range(stages)]
        chain += [Action(stage, "I" if split[stage] else "B", step) for stage in reversed(range(stages))]
        chains.append(chain)
        chains += [[Action(stage, "W", step)] for stage in range(stages) if split[stage]]
    line: list[Action] = []
    while any(chains):
        free = [c for c in chains if c and _ready(c[0], line)]
        line.append(draw(st.sampled_from(free)).pop(0))
    return Schedule.of([line])


def _ready(action: Action, line: list[Action]) -> bool:
    return action.kind != "W" or Action(action.stage, "I", action.micro_step) in line


@settings(max_examples=100, deadline=None)
@given(orders())
def test_the_text_is_what_is_done(schedule: Schedule) -> None:
    check(schedule)
    notes, losses = Notes(schedule.stages), []
    executor = Executor(schedule, 0, Wire((0,), None), notes)
    executor.run(lambda loss: losses.append(float(loss)))
    assert notes.words == [str(action).replace("B", "I") for action in schedule.lines[0]]
    assert losses == [2.0**schedule.stages] * schedule.micro_steps
    assert notes.start.grad == schedule.micro_steps * 2.0**schedule.stages
    assert not executor.held


@settings(max_examples=50, deadline=None)
@given(orders())
def test_gradients_are_whole_at_the_last_word_for_the_weights(schedule: Schedule) -> None:
    notes = Notes(schedule.stages)
    Executor(schedule, 0, Wire((0,), None), notes).run(lambda loss: None)
    backwards = [action for action in schedule.lines[0] if action.kind != "F"]
    ends = {action.stage: at for at, action in enumerate(backwards) if action.kind in ("B", "W")}
    for at, (_, last, final) in enumerate(notes.flags):
        assert last == (at == ends[backwards[at].stage])
        assert final == (at == max(ends.values()))


def test_without_a_backward_only_forwards_are_done() -> None:
    notes = Notes(2)
    Executor(Schedule.parse("0F0 1F0 1I0 0I0 0W0 1W0"), 0, Wire((0,), None), notes, backward=False).run(
        lambda loss: None
    )
    assert notes.words == ["0F0", "1F0"]
