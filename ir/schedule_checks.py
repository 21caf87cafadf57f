"""Whether a schedule can be executed: every action once, nothing before what it needs, no dead-lock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from fourfold.ir.schedule import COMPUTE, RECEIVES, SENDS, Action, Schedule, ScheduleError
from fourfold.ir.schedule_waits import Queue, waits

Chains = Sequence[Sequence[int]]
"""Micro-steps that hold the chunks of one sequence, each in order; one may hold chunks of several."""
Links = Mapping[int, Sequence[int]]
"""By micro-step those that it has to come after."""
Need = tuple[str, int, int]
"""(kind, stage, micro-step), with B for I, and `first` for the forward that gives on: N where there is one, else F."""


class DeadlockError(ScheduleError):
    """Actions that wait for each other; the text names them all."""


def check(schedule: Schedule, *, queue: Queue = "pair", chains: Chains = ()) -> None:
    """Refuses a schedule that would compute something wrong or never end, naming rank, action and what it lacks.

    Messages may be left out altogether (a schedule of computes), as may gathers; one is enough to want all of them.
    chains: micro-steps of one sequence each, in order of its chunks. On every stage a chunk goes forward for the first
    time after the chunk before it, whose keys it reads, and backward after the one behind it, whose gradients it takes;
    a forward that runs again waits for its own N alone.
    Raises ScheduleError, DeadlockError for actions that wait for each other.
    """
    _shape(schedule)
    for rank, line in enumerate(schedule.lines):
        for action in line:
            if not 0 <= action.stage < schedule.stages or schedule.owner[action.stage] != rank:
                raise ScheduleError(f"rank {rank} {action}: stage {action.stage} does not lie on rank {rank}")
    _counts(schedule)
    before, behind = _links(schedule, chains)
    for rank, line in enumerate(schedule.lines):
        _order(rank, line, before, behind)
        _gathers(rank, line)
        _reductions(rank, line)
    _dead_lock(schedule, queue)


def _shape(schedule: Schedule) -> None:
    if len(schedule.lines) != schedule.ranks or len(schedule.owner) != schedule.stages:
        raise ScheduleError(
            f"a schedule of {schedule.ranks} ranks and {schedule.stages} stages has {len(schedule.lines)} lines and "
            f"an owner for {len(schedule.owner)} stages"
        )
    if schedule.stages < 1 or schedule.micro_steps < 1:
        raise ScheduleError(f"{schedule.stages} stages, {schedule.micro_steps} micro-steps: there must be one of each")


def _counts(schedule: Schedule) -> None:
    """Every compute once, the backward whole or split, every message that crosses ranks once at each end."""
    there = Counter(action for line in schedule.lines for action in line if action.kind not in ("UNSHARD", "RESHARD"))
    twice = next((action for action, count in there.items() if count > 1), None)
    if twice is not None:
        raise ScheduleError(f"rank {schedule.owner[twice.stage]} {twice}: stands {there[twice]} times, once is right")
    wanted: set[Action] = set()
    for stage in range(schedule.stages):
        for step in range(schedule.micro_steps):
            split = Action(stage, "I", step) in there or Action(stage, "W", step) in there
            wanted |= {Action(stage, kind, step) for kind in (("F", "I", "W") if split else ("F", "B"))}
    wanted |= {action for action in there if action.kind == "N"}
    if any(action.kind in (*SENDS, *RECEIVES) for action in there):
        wanted.update(_messages(schedule))
    missing = min(wanted - there.keys(), key=_place, default=None)
    if missing is not None:
        raise ScheduleError(f"rank {schedule.owner[missing.stage]} {missing}: is missing")
    surplus = (action for action in there if action.kind in (*COMPUTE, *SENDS, *RECEIVES) and action not in wanted)
    extra = min(surplus, key=_place, default=None)
    if extra is not None:
        raise ScheduleError(f"rank {schedule.owner[extra.stage]} {extra}: is not of this schedule, {_why(extra)}")


def _why(action: Action) -> str:
    if action.kind == "B":
        return "its stage splits the backward of this micro-step into I and W"
    return "no such message crosses from one rank to another"


def _place(action: Action) -> tuple[int, int, str]:
    return action.micro_step, action.stage, action.kind


def _messages(schedule: Schedule) -> Iterator[Action]:
    """Both ends of everything that crosses from one rank to another."""
    for low in range(schedule.stages - 1):
        if schedule.owner[low] == schedule.owner[low + 1]:
            continue
        for step in range(schedule.micro_steps):
            yield Action(low, "SEND_F", step, low + 1)
            yield Action(low + 1, "RECV_F", step, low)
            yield Action(low + 1, "SEND_B", step, low)
            yield Action(low, "RECV_B", step, low + 1)


def _links(schedule: Schedule, chains: Chains) -> tuple[Links, Links]:
    """The chunks before each, and those behind it. Raises ScheduleError for micro-steps that are not there or twice."""
    before: dict[int, list[int]] = {}
    behind: dict[int, list[int]] = {}
    for chain in chains:
        wrong = next((k for k in chain if not 0 <= k < schedule.micro_steps or list(chain).count(k) > 1), None)
        if wrong is not None:
            raise ScheduleError(
                f"chunks in micro-steps {', '.join(map(str, chain))}: {wrong} is there twice or none of 0 to "
                f"{schedule.micro_steps - 1}"
            )
        for step, later in pairwise(chain):
            before.setdefault(later, []).append(step)
            behind.setdefault(step, []).append(later)
    return before, behind


def _order(rank: int, line: tuple[Action, ...], before: Links, behind: Links) -> None:
    """Refuses an action that stands before what it needs on the same line."""
    at: dict[tuple[str, int, int], int] = {}
    for place, action in enumerate(line):
        at["B" if action.kind == "I" else action.kind, action.stage, action.micro_step] = place
        if action.kind in ("N", "F"):
            at.setdefault(("first", action.stage, action.micro_step), place)
    for place, action in enumerate(line):
        needs = _needs(action, before, behind)
        if action.kind == "F" and ("N", action.stage, action.micro_step) in at:
            needs = [("N", action.stage, action.micro_step)]
        for needed in needs:
            found = at.get(needed)
            if found is not None and found > place:
                raise ScheduleError(f"rank {rank} {action}: stands before {line[found]}, which it needs")


def _needs(action: Action, before: Links, behind: Links) -> list[Need]:
    """What an action needs, wherever it is; of an F that nothing is dropped of."""
    stage, step = action.stage, action.micro_step
    if action.kind in ("N", "F"):
        return [
            ("RECV_F", stage, step),
            ("first", stage - 1, step),
            *(("first", stage, k) for k in before.get(step, ())),
        ]
    if action.kind in ("B", "I"):
        later = [("B", stage, k) for k in behind.get(step, ())]
        return [("F", stage, step), ("RECV_B", stage, step), ("B", stage + 1, step), *later]
    if action.kind == "W":
        return [("B", stage, step)]
    return [("first" if action.kind == "SEND_F" else "B", stage, step)] if action.kind in SENDS else []


def _gathers(rank: int, line: tuple[Action, ...]) -> None:
    """Refuses a compute of a stage that is not gathered, where a stage is gathered at all."""
    explicit = {action.stage for action in line if action.kind in ("UNSHARD", "RESHARD")}
    whole: set[int] = set()
    for action in line:
        if action.stage not in explicit:
            continue
        if action.kind == "UNSHARD" and action.stage in whole:
            raise ScheduleError(f"rank {rank} {action}: stage {action.stage} is gathered already")
        if action.kind in (*COMPUTE, "RESHARD") and action.stage not in whole:
            raise ScheduleError(f"rank {rank} {action}: stage {action.stage} is not gathered; put UNSHARD before it")
        if action.kind == "UNSHARD":
            whole.add(action.stage)
        if action.kind == "RESHARD":
            whole.remove(action.stage)


def _reductions(rank: int, line: tuple[Action, ...]) -> None:
    """Refuses gradients reduced before they are whole."""
    last = {action.stage: action for action in line if action.kind in ("B", "W")}
    reduced: dict[int, Action] = {}
    for action in line:
        before = reduced.get(action.stage)
        if action.kind in ("B", "W") and before is not None:
            raise ScheduleError(f"rank {rank} {before}: stands before {last[action.stage]}, whose gradient it needs")
        if action.kind in ("REDUCE", "REDUCE_TIED"):
            reduced[action.stage] = action


def _dead_lock(schedule: Schedule, queue: Queue) -> None:
    graph = waits(schedule, queue=queue)
    cycle = graph.cycle()
    if not cycle:
        return
    places = [{action: place for place, action in enumerate(line)} for line in schedule.lines]
    names: list[str] = []
    for node, needed in zip(cycle, [*cycle[1:], cycle[0]], strict=True):
        names.append(f"rank {graph.ranks[node]} {graph.actions[node]}")
        names += _between(schedule, places, graph.actions[node], graph.actions[needed])
    raise DeadlockError("dead-lock: " + " waits for ".join([*names, names[0]]))


def _between(schedule: Schedule, places: Sequence[Mapping[Action, int]], waiting: Action, awaited: Action) -> list[str]:
    """The RECVs through which one node of the graph waits for another."""
    rank = schedule.owner[waiting.stage]
    passed = [(rank, waiting)]
    if waiting.kind in SENDS and not _before(places[rank], awaited, waiting):
        received = _received(waiting)
        rank = schedule.owner[received.stage]
        passed.append((rank, received))
    if awaited.kind in SENDS and awaited not in places[rank]:
        passed.append((rank, _received(awaited)))
    return [f"rank {at} {action}" for at, action in passed[1:]]


def _before(places: Mapping[Action, int], awaited: Action, waiting: Action) -> bool:
    """Whether one end of what is awaited stands on this line, before what waits."""
    ends = (awaited, _received(awaited)) if awaited.kind in SENDS else (awaited,)
    return any(places.get(end, places[waiting]) < places[waiting] for end in ends)


def _received(send: Action) -> Action:
    """The other end of a message."""
    assert send.peer is not None
    return Action(send.peer, "RECV" + send.kind[4:], send.micro_step, send.stage)
