"""Executes one line of a schedule, action by action, exactly as its text says.

A forward keeps what went in and what came out of its stage until the backward of that micro-step. Sends and receives
are posted where they stand, on a communicator of this rank's line of stages; a compute waits for what it reads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from fourfold.backends.communication.wire import Wire
from fourfold.ir.schedule import Action, Schedule

Tensors = tuple[Tensor, ...]


class Worker(Protocol):
    """What a stage can do; the executor knows when."""

    def forward(self, stage: int, micro_step: int, received: Tensors) -> Tensors:
        """What the stage gives, from what it takes."""
        ...

    def carry(self, stage: int, micro_step: int, received: Tensors) -> Tensors:
        """What the stage gives, nothing kept but what later chunks read; of the last stage, nothing."""
        ...

    def expected(self, stage: int, micro_step: int) -> Tensors:
        """Empty tensors for what the stage takes."""
        ...

    def weigh(self, stage: int, micro_step: int) -> None:
        """The half of a split backward that gives the weights their gradients."""
        ...

    def about_to(self, stage: int, *, last: bool, final: bool) -> None:
        """Called before each backward of a stage, whole or half. last: it ends the gradients of the stage's weights in
        this step; final: of any stage's."""
        ...

    def crosses(self, stage: int) -> tuple[bool, ...]:
        """Of each value a stage gives to the next: whether a gradient comes back for it."""
        ...

    def reduce_tied(self, stage: int) -> None:
        """Adds the gradients of parameters that other stages hold, too."""
        ...


@dataclass(slots=True)
class _Held:
    """A micro-step inside a stage: what came in, what came out, and the gradients that come back for it."""

    taken: Tensors
    given: Tensors
    gradients: Tensors | None = None


@dataclass(slots=True)
class Executor:
    """One line of a schedule at work."""

    schedule: Schedule
    rank: int
    wire: Wire
    worker: Worker
    backward: bool = True
    held: dict[tuple[int, int], _Held] = field(default_factory=dict)
    taken: dict[tuple[int, int], Tensors] = field(default_factory=dict)
    carried: dict[tuple[int, int], Tensors] = field(default_factory=dict)
    arriving: dict[tuple[str, int, int], tuple[list[dist.Work], Tensors]] = field(default_factory=dict)
    leaving: list[tuple[list[dist.Work], Tensors]] = field(default_factory=list)

    def run(self, on_loss: Callable[[Tensor], None]) -> None:
        """All actions of this rank; `on_loss` gets each micro-step's loss where the last stage lies."""
        line = self.schedule.lines[self.rank] if self.backward else _forwards(self.schedule.lines[self.rank])
        remaining = Counter(action.stage for action in line if action.kind in WEIGHING)
        for action in line:
            remaining[action.stage] -= action.kind in WEIGHING
            if action.kind in BACKWARD:
                done = not remaining[action.stage]
                self.worker.about_to(action.stage, last=done, final=not any(remaining.values()))
            self._do(action, on_loss)
        for works, _ in self.leaving:
            for work in works:
                work.wait()

    def _do(self, action: Action, on_loss: Callable[[Tensor], None]) -> None:
        key = (action.stage, action.micro_step)
        if action.kind == "F":
            self._forward(action, on_loss)
        elif action.kind == "N":
            self._carry(action)
        elif action.kind in ("B", "I"):
            self._backward(action)
        elif action.kind == "W":
            self.worker.weigh(action.stage, action.micro_step)
        elif action.kind == "SEND_F":
            self._send(action, self._given(key))
        elif action.kind == "SEND_B":
            self._send(action, self._gradients(action.stage, self.held.pop(key).taken))
        elif action.kind in ("RECV_F", "RECV_B"):
            self._receive(action)
        elif action.kind == "REDUCE_TIED":
            self.worker.reduce_tied(action.stage)

    def _forward(self, action: Action, on_loss: Callable[[Tensor], None]) -> None:
        stage, step = action.stage, action.micro_step
        again = self.taken.pop((stage, step), None)
        taken = self._taken(stage, step) if again is None else again
        given = self.worker.forward(stage, step, taken)
        last = stage == self.schedule.stages - 1
        if last:
            on_loss(given[0].detach())
        if self.backward or not last:
            self.held[stage, step] = _Held(taken, given)

    def _carry(self, action: Action) -> None:
        """A chunk's first pass; what it took is kept for the second."""
        key = (action.stage, action.micro_step)
        self.taken[key] = self._taken(*key)
        with torch.no_grad():
            given = self.worker.carry(*key, self.taken[key])
        if given:
            self.carried[key] = given

    def _given(self, key: tuple[int, int]) -> Tensors:
        """What a stage made for the next one, which is told once."""
        if key in self.carried:
            return self.carried.pop(key)
        return (self.held[key] if self.backward else self.held.pop(key)).given

    def _taken(self, stage: int, step: int) -> Tensors:
        """What the stage before made: from another rank, or from this one."""
        if stage == 0:
            return ()
        if ("F", stage, step) in self.arriving:
            found = self._arrived("F", stage, step)
        else:
            found = tuple(x.detach() for x in self._given((stage - 1, step)))
        wanted = self.worker.crosses(stage - 1)
        return tuple(x.requires_grad_(grad and self.backward) for x, grad in zip(found, wanted, strict=True))

    def _backward(self, action: Action) -> None:
        stage, step = action.stage, action.micro_step
        held = self.held[stage, step]
        if stage == self.schedule.stages - 1:
            held.given[0].backward()  # type: ignore[no-untyped-call]
        else:
            given = _chosen(held.given, self.worker.crosses(stage))
            pairs = [(x, g) for x, g in zip(given, self._returned(stage, step, held), strict=True) if x.requires_grad]
            if pairs:
                torch.autograd.backward([x for x, _ in pairs], [g for _, g in pairs])
        held.given = ()
        if stage == 0 or self.schedule.owner[stage - 1] == self.rank:
            if stage and (stage - 1, step) in self.held:
                self.held[stage - 1, step].gradients = self._gradients(stage, held.taken)
            del self.held[stage, step]

    def _returned(self, stage: int, step: int, held: _Held) -> Tensors:
        """The gradients of what the stage gave that can have one."""
        if ("B", stage, step) in self.arriving:
            return self._arrived("B", stage, step)
        assert held.gradients is not None, f"stage {stage} has no gradient for micro-step {step}"
        return held.gradients

    def _send(self, action: Action, tensors: Tensors) -> None:
        assert action.peer is not None
        peer = self.wire.members[self.schedule.owner[action.peer]]
        held = tuple(x.detach().contiguous() for x in tensors)
        self.leaving.append((self._posted(dist.isend, held, peer), held))

    def _receive(self, action: Action) -> None:
        assert action.peer is not None
        peer = self.wire.members[self.schedule.owner[action.peer]]
        if action.kind == "RECV_F":
            buffers = self.worker.expected(action.stage, action.micro_step)
        else:
            # Of what the next stage took: this one's own may have been dropped, and its forward come again later.
            given = self.worker.expected(action.peer, action.micro_step)
            buffers = _chosen(given, self.worker.crosses(action.stage))
        works = self._posted(dist.irecv, buffers, peer)
        self.arriving[action.kind[-1], action.stage, action.micro_step] = (works, buffers)

    def _posted(self, how: Callable[..., object], tensors: Tensors, peer: int) -> list[dist.Work]:
        """The messages of one action, together."""
        ops = [dist.P2POp(how, x, peer, self.wire.group) for x in tensors if x.numel()]
        return list(dist.batch_isend_irecv(ops)) if ops else []

    def _gradients(self, stage: int, taken: Tensors) -> Tensors:
        """Of what a stage took and can have one; zero where nothing it computed depends on it."""
        chosen = _chosen(taken, self.worker.crosses(stage - 1))
        return tuple(torch.zeros_like(x) if x.grad is None else x.grad for x in chosen)

    def _arrived(self, kind: str, stage: int, step: int) -> Tensors:
        works, tensors = self.arriving.pop((kind, stage, step))
        for work in works:
            work.wait()
        return tensors


def _forwards(line: Sequence[Action]) -> list[Action]:
    """A line without its backwards; chunks that would go forward twice do so once, and are looked at."""
    twice = {(action.stage, action.micro_step) for action in line if action.kind == "N"}
    found = []
    for action in line:
        if action.kind == "N":
            found.append(Action(action.stage, "F", action.micro_step))
        elif action.kind in FORWARD and not (action.kind == "F" and (action.stage, action.micro_step) in twice):
            found.append(action)
    return found


FORWARD = ("F", "SEND_F", "RECV_F", "UNSHARD", "RESHARD")
BACKWARD = ("B", "I", "W")
WEIGHING = ("B", "W")
"""After the last of them the gradients of a stage are whole."""


def _chosen(tensors: Tensors, wanted: Sequence[bool]) -> Tensors:
    return tuple(x for x, flag in zip(tensors, wanted, strict=True) if flag)
