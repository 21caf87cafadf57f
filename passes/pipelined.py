"""The time of a step that goes through pipeline stages: each stage's forward and backward, in the schedule's order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from fourfold.costmodel.timeline import simulate
from fourfold.hardware.machine import Overlap
from fourfold.ir.plan import Plan
from fourfold.ir.stages import stages
from fourfold.passes.schedule import scheduled
from fourfold.passes.schedule.timing import Timed, timed
from fourfold.passes.steps import CallCost, StepTime, one_pass

STEADY = 2
"""Micro-steps a rank of the line that are timed; more repeat the steady middle."""


@dataclass(frozen=True, slots=True)
class StageCost:
    """Seconds of one stage: forward and backward of a micro-step, with gathers at first, with reductions at last."""

    forward: float
    backward: float
    first: float
    last: float
    exposed: float

    @property
    def path(self) -> float:
        """Of one micro-step in the steady middle."""
        return self.forward + self.backward


def stage_costs(plan: Plan, calls: Sequence[CallCost], overlap: Overlap) -> tuple[StageCost, ...]:
    """Each stage of the plan, from the costs of all calls."""
    found = stages(plan.graph, plan.bounds)
    return tuple(_stage(tuple(calls[i] for i in stage.calls), plan.zero, overlap) for stage in found)


@lru_cache(maxsize=4096)
def _stage(calls: tuple[CallCost, ...], zero: int, overlap: Overlap) -> StageCost:
    def seconds(which: str, *, gathers: bool, reduces: bool) -> float:
        return simulate(one_pass(calls, which, gathers=gathers, reduces=reduces), overlap=overlap).makespan

    always = zero == 3
    forward = seconds("forward", gathers=always, reduces=False)
    backward = seconds("backward", gathers=always, reduces=zero >= 2)
    first = seconds("forward", gathers=zero > 0, reduces=False)
    last = seconds("backward", gathers=always, reduces=True)
    return StageCost(forward, backward, first, last, first - forward + last - backward)


def pipelined(plan: Plan, costs: Sequence[StageCost], *, send: float, optimizer: float) -> StepTime:
    """The time of a step, and what of it is exposed communication over the pool."""
    some = min(plan.micro_steps, STEADY * plan.mesh.pp)
    line = timed_schedule(replace(plan, micro_steps=some), costs, send=send)
    busiest = max(sum(costs[s].path for s in range(p, len(costs), plan.mesh.pp)) for p in range(plan.mesh.pp))
    seconds = ended(line, costs) + (plan.micro_steps - some) * busiest + optimizer
    return StepTime(seconds, max(cost.exposed for cost in costs))


def timed_schedule(plan: Plan, costs: Sequence[StageCost], *, send: float) -> Timed:
    """When each action of the plan's schedule runs; what a stage reduces after its last backward is not in it."""

    def durations(stage: int, kind: str, step: int) -> float:
        cost = costs[stage]
        if kind == "F":
            return cost.first if step == 0 else cost.forward
        return cost.backward if kind == "B" else 0.0

    return timed(scheduled(plan.schedule, plan.mesh.pp, plan.micro_steps), durations, send=send)


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
