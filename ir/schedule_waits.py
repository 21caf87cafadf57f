"""What every action of a schedule waits for: one graph that the dead-lock check walks and the timing runs over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from fourfold.ir.schedule import COMPUTE, RECEIVES, STAGEWISE, Action, Schedule

Queue = Literal["pair", "rank"]
"""What goes in order at both ends: the messages of a pair of ranks, or all those of a rank."""


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
    """The graph of a schedule in which every action is there once."""
    build = _Builder(schedule, queue)
    for rank, line in enumerate(schedule.lines):
        build.number(rank, line)
    for rank, line in enumerate(schedule.lines):
        build.walk(rank, line)
    for node in build.tied:
        build.after[node] += [last for last in build.tied.values() if last not in build.after[node]]
    return Waits(tuple(build.actions), tuple(build.ranks), tuple(tuple(needed) for needed in build.after))


@dataclass(slots=True)
class _Builder:
    schedule: Schedule
    queue: Queue
    actions: list[Action] = field(default_factory=list)
    ranks: list[int] = field(default_factory=list)
    after: list[list[int]] = field(default_factory=list)
    numbers: dict[tuple[str, int, int], int] = field(default_factory=dict)
    wholes: dict[tuple[int, int], int] = field(default_factory=dict)
    tied: dict[int, int] = field(default_factory=dict)

    def number(self, rank: int, line: Sequence[Action]) -> None:
        """Gives every node of a line its number. I is found as B: it brings the gradient."""
        for place, action in enumerate(line):
            if action.kind in RECEIVES or action.kind == "RESHARD":
                continue
            if action.kind in STAGEWISE:
                self.wholes[rank, place] = len(self.actions)
            else:
                kind = "B" if action.kind == "I" else action.kind
                self.numbers[kind, action.stage, action.micro_step] = len(self.actions)
            self.actions.append(action)
            self.ranks.append(rank)
            self.after.append([])

    def walk(self, rank: int, line: Sequence[Action]) -> None:
        """Adds what the nodes of a line wait for, and what messages to it wait for at this end."""
        last: int | None = None
        pool: int | None = None
        queued: dict[int, int] = {}
        gathered: dict[int, int] = {}
        for place, action in enumerate(line):
            if action.kind == "RESHARD":
                continue
            if action.kind in COMPUTE:
                node = self._number(action)
                self._add(node, last, gathered.pop(action.stage, None), *self._inputs(action))
                last = node
            elif action.peer is not None:
                node = self._number(action)
                other = self.schedule.owner[action.peer] if self.queue == "pair" else rank
                self._add(node, last, queued.get(other))
                queued[other] = node
            else:
                node = self.wholes[rank, place]
                self._add(node, last, pool)
                pool = node
                if action.kind == "UNSHARD":
                    gathered[action.stage] = node
                elif action.kind == "REDUCE_TIED" and last is not None:
                    self.tied[node] = last

    def _add(self, node: int, *needs: int | None) -> None:
        known = self.after[node]
        for need in needs:
            if need is not None and need not in known:
                known.append(need)

    def _number(self, action: Action) -> int:
        """The node of a compute or a message."""
        if action.kind in RECEIVES:
            assert action.peer is not None
            return self.numbers["SEND" + action.kind[4:], action.peer, action.micro_step]
        kind = "B" if action.kind == "I" else action.kind
        return self.numbers[kind, action.stage, action.micro_step]

    def _inputs(self, action: Action) -> list[int]:
        """The computes or messages that bring what a compute reads."""
        stage, step = action.stage, action.micro_step
        if action.kind == "W":
            return [self.numbers["B", stage, step]]
        if action.kind == "F":
            return [self._from("F", stage - 1, step)] if stage > 0 else []
        own = self.numbers["F", stage, step]
        return [own, self._from("B", stage + 1, step)] if stage + 1 < self.schedule.stages else [own]

    def _from(self, kind: str, stage: int, step: int) -> int:
        message = self.numbers.get((f"SEND_{kind}", stage, step))
        return self.numbers[kind, stage, step] if message is None else message
