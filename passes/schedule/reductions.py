"""Gathers of parameters and reductions of gradients added to a schedule, each where it must and can stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fourfold.hardware.errors import UsageError
from fourfold.ir.schedule import COMPUTE, Action, Schedule


def with_reductions(schedule: Schedule, *, tied: Sequence[int] = ()) -> Schedule:
    """REDUCE of each stage behind its last gradient; REDUCE_TIED of the `tied` stages at the end of their lines.

    All ranks come to REDUCE_TIED once all else is done, so that no rank waits in it for what another waits for.
    Raises UsageError for tied stages that are not two or more of the schedule's.
    """
    if tied and (len(set(tied)) < 2 or not all(0 <= stage < schedule.stages for stage in tied)):
        raise UsageError(f"tied stages are two or more of 0 to {schedule.stages - 1}; given: {list(tied)}")
    lines = []
    for line in schedule.lines:
        last = {action.stage: place for place, action in enumerate(line) if action.kind in ("B", "W")}
        behind = [(place + 1, Action(stage, "REDUCE")) for stage, place in last.items()]
        ends = [Action(stage, "REDUCE_TIED") for stage in sorted(set(tied)) if stage in last]
        lines.append((*_inserted(line, behind), *ends))
    return replace(schedule, lines=tuple(lines))


def with_gathers(schedule: Schedule, *, resident: int | None = None, ahead: int = 1) -> Schedule:
    """UNSHARD of a stage before it is used and RESHARD after, for parameters that lie sharded between uses.

    A rank keeps at most `resident` of its stages gathered (all of them if None: one UNSHARD and one RESHARD each),
    and lets go of the one whose next use is furthest: the fewest gathers there can be (Belady 1966). An UNSHARD stands
    up to `ahead` computes early, where that keeps within `resident`. Raises UsageError for a resident below one.
    """
    if resident is not None and resident < 1:
        raise UsageError(f"resident={resident}: a rank needs at least 1 gathered stage to compute")
    return replace(schedule, lines=tuple(_gathered(line, resident, ahead) for line in schedule.lines))


def _gathered(line: Sequence[Action], resident: int | None, ahead: int) -> tuple[Action, ...]:
    """The line with its gathers, each behind the RESHARD that makes room for it."""
    places = [place for place, action in enumerate(line) if action.kind in COMPUTE]
    uses = [line[place].stage for place in places]
    gathers: list[tuple[int, Action]] = []
    releases: list[tuple[int, Action]] = []
    held: dict[int, int] = {}
    for turn, stage in enumerate(uses):
        if stage not in held:
            room = 0
            if len(held) == resident:
                gone = max(held, key=lambda other: (_next_use(uses, other, turn), -held[other]))
                room = held.pop(gone) + 1
                releases.append((places[room - 1] + 1, Action(gone, "RESHARD")))
            gathers.append((places[max(room, turn - ahead, 0)], Action(stage, "UNSHARD")))
        held[stage] = turn
    releases += [(places[last] + 1, Action(stage, "RESHARD")) for stage, last in held.items()]
    return _inserted(line, [*releases, *gathers])


def _next_use(uses: Sequence[int], stage: int, turn: int) -> int:
    return next((later for later in range(turn, len(uses)) if uses[later] == stage), len(uses))


def _inserted(line: Sequence[Action], extra: Sequence[tuple[int, Action]]) -> tuple[Action, ...]:
    """The line with each extra action before the place it is given with, in the order they come."""
    before: dict[int, list[Action]] = {}
    for place, action in extra:
        before.setdefault(place, []).append(action)
    merged = [found for place, action in enumerate(line) for found in (*before.get(place, ()), action)]
    return (*merged, *before.get(len(line), ()))
