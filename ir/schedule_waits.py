"""What every action of a schedule waits for: one graph that the dead-lock check walks and the timing runs over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from fourfold.ir.schedule import COMPUTE, SENDS, Action, Schedule

Queue = Literal["pair", "rank"]
"""What goes in order at both ends: the messages of a pair of ranks, or all those of a rank."""
CODES = {"F": 0, "B": 1, "I": 1, "W": 2, "SEND_F": 3, "RECV_F": 3, "SEND_B": 4, "RECV_B": 4, "N": 5}
"""What is one node has one code: I brings the gradient as B does, a message is its SEND."""


@dataclass(frozen=True, slots=True)
class Waits:
    """Node i is `actions[i]` on `ranks[i]` and ends after those in `after[i]`.

    A message is one node, its SEND: it goes when both ends have come to it. RECV and RESHARD are no nodes.
    """

    actions: tuple[Action, ...]
    ranks: tuple[int, ...]
    after: tuple[tuple[int, ...], ...]

    def order(self) -> list[int]:
        """Nodes, each after those it waits for; fewer than there are if some wait for each other."""
        followers: list[list[int]] = [[] for _ in self.after]
        for node, needed in enumerate(self.after):
            for before in needed:
                followers[before].append(node)
        waiting = [len(needed) for needed in self.after]
        found = [node for node, count in enumerate(waiting) if count == 0]
        for node in found:
            for follower in followers[node]:
                waiting[follower] -= 1
                if waiting[follower] == 0:
                    found.append(follower)
        return found

    def cycle(self) -> list[int]:
        """Nodes that wait for each other, each before the one it waits for; empty if there is no cycle."""
        done = set(self.order())
        at = next((node for node in range(len(self.after)) if node not in done), None)
        if at is None:
            return []
        seen: dict[int, int] = {}
        while at not in seen:
            seen[at] = len(seen)
            at = next(needed for needed in self.after[at] if needed not in done)
        return list(seen)[seen[at] :]


def waits(schedule: Schedule, *, queue: Queue = "pair") -> Waits:
    """The graph of a schedule in which every action is there once.

    Chunks of one sequence wait for each other inside a stage only, whose line orders them: they add nothing here.
    """
    build = _Builder(schedule, queue)
    for rank, line in enumerate(schedule.lines):
        build.number(rank, line)
    for rank, line in enumerate(schedule.lines):
        build.walk(rank, line)
    for node in build.tied:
        build.after[node] += [last for last in build.tied.values() if last not in build.after[node]]
    return Waits(tuple(build.actions), tuple(build.ranks), tuple(map(tuple, build.after)))


@dataclass(slots=True)
class _Builder:
    schedule: Schedule
    queue: Queue
    actions: list[Action] = field(default_factory=list)
    ranks: list[int] = field(default_factory=list)
    after: list[list[int]] = field(default_factory=list)
    numbers: dict[int, int] = field(default_factory=dict)
    tied: dict[int, int] = field(default_factory=dict)

    def key(self, code: int, stage: int, step: int) -> int:
        """A number for (code, stage, micro-step): these graphs are large, and tuples hash slowly."""
        return (code * self.schedule.stages + stage) * self.schedule.micro_steps + step

    def number(self, rank: int, line: Sequence[Action]) -> None:
        """Gives every compute and message that a line begins its node."""
        for action in line:
            if action.kind in COMPUTE or action.kind in SENDS:
                self.numbers[self.key(CODES[action.kind], action.stage, action.micro_step)] = self._node(action, rank)

    def walk(self, rank: int, line: Sequence[Action]) -> None:
        """Adds what the nodes of a line wait for, and what messages to it wait for at this end."""
        last: int | None = None
        pool: int | None = None
        queued: dict[int, int] = {}
        gathered: dict[int, int] = {}
        for action in line:
            if action.kind in COMPUTE:
                node = self.numbers[self.key(CODES[action.kind], action.stage, action.micro_step)]
                self._add(node, last, gathered.pop(action.stage, None), *self._inputs(action))
                last = node
            elif action.peer is not None:
                stage = action.stage if action.kind in SENDS else action.peer
                node = self.numbers[self.key(CODES[action.kind], stage, action.micro_step)]
                other = self.schedule.owner[action.peer] if self.queue == "pair" else rank
                self._add(node, last, queued.get(other))
                queued[other] = node
            elif action.kind != "RESHARD":
                node = self._node(action, rank)
                self._add(node, last, pool)
                pool = node
                if action.kind == "UNSHARD":
                    gathered[action.stage] = node
                elif action.kind == "REDUCE_TIED" and last is not None:
                    self.tied[node] = last

    def _node(self, action: Action, rank: int) -> int:
        self.actions.append(action)
        self.ranks.append(rank)
        self.after.append([])
        return len(self.actions) - 1

    def _add(self, node: int, *needs: int | None) -> None:
        known = self.after[node]
        for need in needs:
            if need is not None and need not in known:
                known.append(need)

    def _inputs(self, action: Action) -> list[int]:
        """The computes or messages that bring what a compute reads."""
        stage, step = action.stage, action.micro_step
        if action.kind == "W":
            return [self.numbers[self.key(CODES["B"], stage, step)]]
        again = self.numbers.get(self.key(CODES["N"], stage, step)) if action.kind == "F" else None
        if again is not None:
            return [again]
        if action.kind in ("N", "F"):
            return [self._from("F", stage - 1, step)] if stage > 0 else []
        own = self.numbers[self.key(CODES["F"], stage, step)]
        return [own, self._from("B", stage + 1, step)] if stage + 1 < self.schedule.stages else [own]

    def _from(self, kind: Literal["F", "B"], stage: int, step: int) -> int:
        code = CODES["SEND_F"] if kind == "F" else CODES["SEND_B"]
        message = self.numbers.get(self.key(code, stage, step))
        if message is None and kind == "F":
            message = self.numbers.get(self.key(CODES["N"], stage, step))
        return self.numbers[self.key(CODES[kind], stage, step)] if message is None else message
