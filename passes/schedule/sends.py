"""Sends and receives added to a schedule of computes, in an order that no queue of messages can lock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fourfold.ir.schedule import COMPUTE, Action, Schedule, ScheduleError
from fourfold.ir.schedule_waits import waits

SPAN = {"N": 1, "F": 1, "B": 2, "I": 1, "W": 1}
"""Durations that only decide which message comes first in a queue."""
GIVES = {"N": "F", "F": "F", "B": "B", "I": "B", "W": "W"}
"""What the message of a compute is called."""


@dataclass(frozen=True, slots=True)
class Message:
    """An activation or a gradient; `sent` is its slot on the sender's line, `needed` the last one on the receiver's."""

    send: Action
    receive: Action
    source: int
    target: int
    sent: int
    needed: int


def with_sends(schedule: Schedule, *, ahead: int = 1) -> Schedule:
    """A SEND after each compute whose result another rank reads, and a RECV before the compute that reads it.

    A forward that runs twice sends and receives with its first run, N.

    Messages are ordered as their producers are in one order of all computes, and each line names its own in that
    order: the first compute not yet run always has its messages posted, be there a queue for each pair of ranks or
    one for all messages of a rank. Within that, a RECV stands `ahead` computes before its reader, so that the
    transfer has something to hide under; 0 is as late as can be.
    Raises ScheduleError for a schedule that has messages already, or whose computes wait for each other.
    """
    if any(action.kind not in COMPUTE for line in schedule.lines for action in line):
        raise ScheduleError(
            "with_sends takes a schedule of N, F, B, I and W alone; add reductions and gathers after it"
        )
    messages = _messages(schedule)
    posted: list[list[tuple[int, int, Action]]] = [[] for _ in schedule.lines]
    for number, (message, received) in enumerate(zip(messages, _slots(messages, schedule.ranks, ahead), strict=True)):
        posted[message.source].append((message.sent, number, message.send))
        posted[message.target].append((received, number, message.receive))
    lines = tuple(_merged(line, sorted(extra)) for line, extra in zip(schedule.lines, posted, strict=True))
    return replace(schedule, lines=lines)


def _merged(line: Sequence[Action], extra: Sequence[tuple[int, int, Action]]) -> tuple[Action, ...]:
    """`line` with the actions of slot i before its compute i."""
    slots: list[list[Action]] = [[] for _ in range(len(line) + 1)]
    for slot, _, action in extra:
        slots[slot].append(action)
    merged = [action for before, own in zip(slots, line, strict=False) for action in (*before, own)]
    return (*merged, *slots[-1])


def _slots(messages: Sequence[Message], ranks: int, ahead: int) -> list[int]:
    """Where each message is received: no later than the next message of that rank, no earlier than the last."""
    latest = [message.needed for message in messages]
    limit: dict[int, int] = {}
    for number in reversed(range(len(messages))):
        message = messages[number]
        latest[number] = limit[message.target] = min(message.needed, limit.get(message.target, message.needed))
        limit[message.source] = message.sent
    floor = [0] * ranks
    for number, message in enumerate(messages):
        latest[number] = floor[message.target] = max(floor[message.target], min(latest[number], message.needed - ahead))
        floor[message.source] = message.sent
    return latest


def _messages(schedule: Schedule) -> list[Message]:
    """What crosses ranks, in the order of its producers."""
    where: dict[tuple[str, int, int], int] = {}
    for line in schedule.lines:
        for slot, action in enumerate(line):
            where.setdefault((GIVES[action.kind], action.stage, action.micro_step), slot)
    again = {(action.stage, action.micro_step) for line in schedule.lines for action in line if action.kind == "N"}
    found = []
    for action in _ordered(schedule):
        kind, stage, step = GIVES[action.kind], action.stage, action.micro_step
        if action.kind == "F" and (stage, step) in again:
            continue
        peer = stage + 1 if kind == "F" else stage - 1
        if kind == "W" or not 0 <= peer < schedule.stages or schedule.owner[peer] == schedule.owner[stage]:
            continue
        send, receive = Action(stage, f"SEND_{kind}", step, peer), Action(peer, f"RECV_{kind}", step, stage)
        sent, needed = where[kind, stage, step] + 1, where[kind, peer, step]
        found.append(Message(send, receive, schedule.owner[stage], schedule.owner[peer], sent, needed))
    return found


def _ordered(schedule: Schedule) -> list[Action]:
    """The computes in an order in which each comes after what it waits for: by their ends at unit durations."""
    graph = waits(schedule)
    order = graph.order()
    if len(order) < len(graph.actions):
        raise ScheduleError(f"{graph.actions[graph.cycle()[0]]} waits for itself: `check` names the whole cycle")
    end = [0] * len(order)
    for node in order:
        end[node] = SPAN[graph.actions[node].kind] + max((end[before] for before in graph.after[node]), default=0)
    return [graph.actions[node] for node in sorted(order, key=lambda node: (end[node], node))]
