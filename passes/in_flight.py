"""How many micro-steps a place in a line of stages keeps at once, by schedule: read off its text by a test."""

from __future__ import annotations

from fourfold.ir.plan import Plan


def in_flight(plan: Plan, place: int) -> float:
    """In units of all that one micro-step keeps on this rank; with several stages on it they are taken as equal."""
    pp, steps = plan.mesh.pp, plan.micro_steps
    if pp == 1:
        return 1.0
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
