"""The time of a step that goes through pipeline stages: each stage's forward and backward, in the schedule's order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

from fourfold.costmodel.timeline import simulate
from fourfold.hardware.machine import Overlap
from fourfold.hardware.topology import Machine
from fourfold.ir.mesh import Mesh
from fourfold.ir.plan import SPLIT, Plan
from fourfold.ir.stages import stages
from fourfold.passes.price.steps import CallCost, StepTime, one_pass
from fourfold.passes.schedule import scheduled
from fourfold.passes.schedule.timing import Timed, timed

STEADY = 2
"""Rounds of one micro-step a rank of the line after which the line is in step; the next is timed, too, and repeated."""


@dataclass(frozen=True, slots=True)
class StageCost:
    """Seconds of one stage: forward and backward of a micro-step, with gathers at first, with reductions at last.

    Where the backward is split, `late` of it is W's, which passes every call `again`.
    """

    forward: float
    backward: float
    first: float
    last: float
    exposed: float
    late: float = 0.0
    again: float = 0.0

    @property
    def path(self) -> float:
        """Of one micro-step in the steady middle."""
        return self.forward + self.backward + self.again

    @property
    def split(self) -> Mapping[str, float]:
        """Of one micro-step, by action of a split backward."""
        return {"F": self.forward, "I": self.backward - self.late, "W": self.late + self.again}


def stage_costs(plan: Plan, calls: Sequence[CallCost], overlap: Overlap) -> tuple[StageCost, ...]:
    """Each stage of the plan, from the costs of all calls."""
    parts = [tuple(calls[i] for i in stage.calls) for stage in stages(plan.graph, plan.bounds)]
    found = tuple(_stage(part, plan.zero, overlap) for part in parts)
    if plan.schedule not in SPLIT:
        return found
    late = (sum(call.late for call in part) for part in parts)
    again = (sum(call.around for call in part) for part in parts)
    return tuple(replace(cost, late=w, again=a) for cost, w, a in zip(found, late, again, strict=True))


@lru_cache(maxsize=4096)
def _stage(calls: tuple[CallCost, ...], zero: int, overlap: Overlap) -> StageCost:
    def seconds(which: str, *, gathers: bool, reduces: bool) -> float:
        return simulate(one_pass(calls, which, gathers=gathers, reduces=reduces), overlap=overlap).makespan

    always = zero == 3
    forward = seconds("forward", gathers=always, reduces=False)
    backward = seconds("backward", gathers=always, reduces=zero >= 2)
    first = seconds("forward", gathers=True, reduces=False)
    last = seconds("backward", gathers=always, reduces=True)
    copied = sum(call.copies.once for call in calls)
    return StageCost(forward, backward, first, last, max(0.0, first - forward + last - backward - copied))


def busiest(plan: Plan, costs: Sequence[StageCost], send: float) -> float:
    """Seconds that no order of the stages' micro-steps goes below.

    A rank runs all of its own; around that the stages ahead of it run once, with messages there and back, and after it
    one stage at least reduces.
    """
    more, found = plan.micro_steps - 1, 0.0
    for place in range(plan.mesh.pp):
        own = costs[place :: plan.mesh.pp]
        work = sum(c.first + c.backward + more * (c.forward + c.backward) for c in own)
        ahead = sum(cost.forward + cost.backward + 2 * send for cost in costs[:place])
        found = max(found, work + max(ahead, min(c.last - c.backward for c in own)))
    return found


def pipelined(plan: Plan, costs: Sequence[StageCost], *, send: float, optimizer: float) -> StepTime:
    """The time of a step, and what of it is exposed communication over the pool.

    Many micro-steps are not all timed: once the line is in step, each round of `pp` takes as long as the one before.
    What a round takes is read off the timeline, with the messages that nothing hides. Never less than the busiest rank
    computes; within 1 % of the whole timeline where a message takes a tenth of a stage, 3 % where
    places have several stages (a test).
    """
    pp = plan.mesh.pp
    repeated = 0 if plan.order else max(0, plan.micro_steps // pp - STEADY - 1)
    few = plan.micro_steps - repeated * pp

    def end(steps: int) -> float:
        return ended(timed_schedule(replace(plan, micro_steps=steps), costs, send=send), costs)

    seconds = end(few)
    if repeated:
        busiest = max(sum(cost.path for cost in costs[place::pp]) for place in range(pp))
        seconds += repeated * max(seconds - end(few - pp), pp * busiest)
    return StepTime(seconds + optimizer, max(cost.exposed for cost in costs))


def timed_schedule(plan: Plan, costs: Sequence[StageCost], *, send: float) -> Timed:
    """When each action of the plan's schedule runs; what a stage reduces after its last backward is not in it."""

    def durations(stage: int, kind: str, step: int) -> float:
        cost = costs[stage]
        if kind in ("N", "F"):
            return cost.first if step == 0 else cost.forward
        return cost.backward if kind == "B" else cost.split.get(kind, 0.0)

    line = scheduled(plan.schedule, plan.mesh.pp, plan.micro_steps, order=plan.order)
    return timed(line, durations, send=send)


def ended(line: Timed, costs: Sequence[StageCost]) -> float:
    """When the last rank has reduced its gradients: a stage hands its last gradient on without waiting for that.

    The stages of a rank reduce one after the other, each after its last backward.
    """
    graph = line.graph
    done = [0.0] * line.schedule.ranks
    backward = {
        action.stage: (end, rank)
        for action, rank, end in zip(graph.actions, graph.ranks, line.end, strict=True)
        if action.kind in ("B", "W")
    }
    for stage, (end, rank) in sorted(backward.items(), reverse=True):
        done[rank] = max(done[rank], end) + costs[stage].last - costs[stage].backward
    return max(line.makespan, *done)


def least(plan: Plan, total: float) -> float:
    """Seconds that a step of these stages cannot go below, when one micro-step takes `total` through all of them."""
    return plan.micro_steps * total / plan.mesh.pp


def neighbours(mesh: Mesh, machine: Machine) -> tuple[int, ...]:
    """Two ranks of neighbouring stages: a pair on two nodes, where there is one, as its message takes longest."""
    line = mesh.group("pp")
    pairs = (pair for pair in pairwise(line) if pair[0] // machine.node_size != pair[1] // machine.node_size)
    return next(pairs, line[:2])
