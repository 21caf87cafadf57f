"""How many micro-steps a place in a line of stages keeps at once, by schedule: read off its text by a test."""

from __future__ import annotations

from fourfold.ir.plan import SPLIT, Plan
from fourfold.ir.schedule import Schedule


def in_flight(plan: Plan, place: int) -> float:
    """In units of all that one micro-step keeps on this rank; with several stages on it they are taken as equal.

    Where the backward is split, these are the micro-steps whose I is still to be done.
    """
    pp, steps = plan.mesh.pp, plan.micro_steps
    if pp == 1:
        return 1.0
    if plan.order:
        return float(max(whole for whole, _ in moments(Schedule.parse(plan.order), place)))
    if plan.schedule == "gpipe":
        return float(steps)
    virtual = plan.virtual
    if virtual == 1:
        return float(min(pp - place, steps))
    # The rounds of schedule/interleaved.py: the first is as long as any.
    rounds = max(1, steps // pp)
    first = -(-steps // rounds)
    ahead = (virtual - 1) * first + 2 * (pp - place - 1)
    return min(ahead + 1, steps * virtual) / virtual


def owed(plan: Plan, place: int) -> float:
    """The most micro-steps whose I is done and whose W is not, before one more I is: while most are in flight."""
    if plan.mesh.pp == 1 or plan.schedule not in SPLIT:
        return 0.0
    if plan.order:
        return float(max(late for _, late in moments(Schedule.parse(plan.order), place)))
    return float(min(place, plan.micro_steps - 1))


def moments(schedule: Schedule, stage: int) -> frozenset[tuple[int, int]]:
    """Before each backward of a stage: micro-steps that are whole in flight, and those of which only W is missing."""
    whole, late, found = 0, 0, set()
    for action in schedule.lines[schedule.owner[stage]]:
        if action.stage != stage:
            continue
        if action.kind in ("B", "I"):
            found.add((whole, late))
        whole += {"F": 1, "B": -1, "I": -1}.get(action.kind, 0)
        late += {"I": 1, "W": -1}.get(action.kind, 0)
    return frozenset(found)
