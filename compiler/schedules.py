"""The schedule a plan's program asks for, step by step: made by the passes, executed by the backends."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from fourfold.ir.batch import BatchPlan
from fourfold.ir.plan import Plan
from fourfold.ir.schedule import Action, Schedule, in_turn
from fourfold.passes.schedule import scheduled


@dataclass(frozen=True, slots=True)
class Scheduled:
    """The schedules of one plan: `(micro_steps) -> Schedule`, ready to be executed."""

    kind: str
    ranks: int
    order: str = ""

    @classmethod
    def of(cls, plan: Plan) -> Scheduled:
        """What the plan names."""
        return cls(plan.schedule, plan.mesh.pp, plan.order)

    def __call__(self, micro_steps: int) -> Schedule:
        """For a step of so many micro-steps."""
        return _schedule(self.kind, self.ranks, micro_steps, self.order)


@lru_cache(maxsize=64)
def _schedule(kind: str, ranks: int, micro_steps: int, order: str) -> Schedule:
    if ranks == 1:
        return in_turn(micro_steps)
    return _reducing(scheduled(kind, ranks, micro_steps, order=order))


def ordered(plan: Plan, batch: BatchPlan, rank: int) -> Schedule:
    """What a rank of the pool runs of a placed batch under a plan, over its own micro-steps.

    Raises UsageError for chunks where a rank holds several stages.
    """
    # Policies bring their solvers along, which a program that places no batch need not load.
    from fourfold.passes.batch.timing.orders import schedule_of

    how = {"stages": plan.mesh.pp, "zero": plan.zero}
    made = schedule_of(batch, rank, **how, kind=plan.schedule, order=plan.order)
    return made if plan.mesh.pp == 1 else _reducing(made)


def _reducing(made: Schedule) -> Schedule:
    """The stages that hold a tied parameter are known to the program: it reduces where it holds one."""
    return Schedule.of([(*line, Action(rank, "REDUCE_TIED")) for rank, line in enumerate(made.lines)])
