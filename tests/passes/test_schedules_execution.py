"""What `check` says of a schedule, against lines that are walked action by action, as ranks would."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold.ir.schedule import COMPUTE, SENDS, Action, Schedule, ScheduleError
from fourfold.ir.schedule_checks import DeadlockError, check
from fourfold.ir.schedule_waits import Queue
from fourfold.passes.schedule import KINDS
from fourfold.passes.schedule.sends import with_sends

Message = tuple[str, int, int]


@dataclass
class Walk:
    """Ranks that go on as long as any can: a line stops at a compute whose input is not there."""

    schedule: Schedule
    queue: Queue
    at: list[int] = field(init=False)
    queues: dict[tuple[int, int], list[Message]] = field(default_factory=dict)
    done: set[Message] = field(default_factory=set)
    computed: set[tuple[str, int, int]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.at = [0] * self.schedule.ranks

    def ends(self) -> bool:
        """Whether every line comes to its end and every message arrives."""
        while any(self.step(rank) for rank in range(self.schedule.ranks)) or self.carry():
            pass
        return all(at == len(line) for at, line in zip(self.at, self.schedule.lines, strict=True)) and not any(
            self.queues.values()
        )

    def step(self, rank: int) -> bool:
        line = self.schedule.lines[rank]
        if self.at[rank] == len(line):
            return False
        action = line[self.at[rank]]
        if action.kind in COMPUTE and not self.ready(action, rank):
            return False
        if action.kind in COMPUTE:
            self.computed.add(("B" if action.kind == "I" else action.kind, action.stage, action.micro_step))
        else:
            self.post(action, rank)
        self.at[rank] += 1
        return True

    def ready(self, action: Action, rank: int) -> bool:
        if action.kind == "W":
            return ("B", action.stage, action.micro_step) in self.computed
        if action.kind == "F" and self.dropped(action, rank):
            return ("N", action.stage, action.micro_step) in self.computed
        kind = "F" if action.kind in ("N", "F") else "B"
        before = action.stage - 1 if kind == "F" else action.stage + 1
        if kind == "B" and ("F", action.stage, action.micro_step) not in self.computed:
            return False
        if not 0 <= before < self.schedule.stages:
            return True
        if self.schedule.owner[before] != rank:
            return (kind, before, action.micro_step) in self.done
        first = "N" if kind == "F" and self.dropped(Action(before, "F", action.micro_step), rank) else kind
        return (first, before, action.micro_step) in self.computed

    def dropped(self, action: Action, rank: int) -> bool:
        return replace(action, kind="N") in self.schedule.lines[rank]

    def post(self, action: Action, rank: int) -> None:
        assert action.peer is not None
        sender = action.stage if action.kind in SENDS else action.peer
        other = self.schedule.owner[action.peer] if self.queue == "pair" else 0
        self.queues.setdefault((rank, other), []).append((action.kind[-1], sender, action.micro_step))

    def carry(self) -> bool:
        """Lets one message go that is next in its queue at both ends."""
        heads = [waiting[0] for waiting in self.queues.values() if waiting]
        moved = next((message for message in heads if heads.count(message) == 2), None)
        if moved is None:
            return False
        for waiting in self.queues.values():
            if waiting and waiting[0] == moved:
                waiting.pop(0)
        self.done.add(moved)
        return True


def twice(again: Collection[tuple[int, int]], line: Sequence[Action]) -> tuple[Action, ...]:
    """The line with the forwards of `again` dropped, and run again right before their backward."""
    found: list[Action] = []
    for action in line:
        here = (action.stage, action.micro_step) in again
        if here and action.kind in ("B", "I"):
            found.append(replace(action, kind="F"))
        found.append(replace(action, kind="N") if here and action.kind == "F" else action)
    return tuple(found)


@st.composite
def disturbed(draw: st.DrawFn) -> Schedule:
    """A lowered schedule in which some forwards run twice and some neighbours on a line changed places."""
    kind = draw(st.sampled_from(sorted(KINDS)))
    whole = KINDS[kind](draw(st.integers(2, 4)), draw(st.integers(1, 4)))
    again = draw(st.sets(st.tuples(st.integers(0, whole.stages - 1), st.integers(0, whole.micro_steps - 1))))
    schedule = with_sends(
        replace(whole, lines=tuple(map(partial(twice, again), whole.lines))), ahead=draw(st.integers(0, 2))
    )
    lines = [list(line) for line in schedule.lines]
    for rank, at in draw(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 200)), max_size=12)):
        line = lines[rank % len(lines)]
        place = at % (len(line) - 1)
        line[place : place + 2] = reversed(line[place : place + 2])
    return replace(schedule, lines=tuple(map(tuple, lines)))


@settings(max_examples=300, deadline=None)
@given(disturbed(), st.sampled_from(["pair", "rank"]))
def test_a_schedule_is_refused_just_when_its_ranks_would_wait_for_ever(schedule: Schedule, queue: Queue) -> None:
    try:
        check(schedule, queue=queue)
    except DeadlockError as error:
        assert not Walk(schedule, queue).ends(), str(error)
    except ScheduleError as error:
        assert "stands before" in str(error)
    else:
        assert Walk(schedule, queue).ends()
