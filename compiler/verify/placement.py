"""The batch of verify under a policy: room so small that documents must be shared or cut, and what was made of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from fourfold.compiler.online.choosing import named
from fourfold.compiler.schedules import ordered
from fourfold.compiler.verify.report import Placed
from fourfold.hardware import load
from fourfold.hardware.errors import InfeasibleError, RunError
from fourfold.hardware.topology import Machine
from fourfold.ir.batch import BatchPlan
from fourfold.ir.batch_rules import complaints
from fourfold.ir.plan import Plan
from fourfold.ir.schedule import Schedule
from fourfold.passes.batch import Policy
from fourfold.passes.batch.timing.planned import terms_of
from fourfold.passes.batch.timing.refusal import SLACK

HALVES = 2
"""Ranks that just hold the longest document: a pool of two can, and a larger one has teams to choose."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """The same placement for every batch, in the order of a plan: what a `Program` asks."""

    plan: Plan
    batch: BatchPlan

    def ahead(self, lengths: Sequence[int]) -> None:
        """Nothing: all is placed."""

    def learn(self, rank: int, seconds: float, tokens: int) -> None:
        """Nothing: paces change no placement that is made."""

    def place(self, lengths: Sequence[int], step: int | None = None) -> BatchPlan:
        """The placement."""
        return self.batch

    def schedule(self, batch: BatchPlan, rank: int) -> Schedule:
        """What a rank of the pool runs of it."""
        return ordered(self.plan, batch, rank)


def placed(
    policy: str | Policy, lengths: Sequence[int], fitted: Callable[[int], Plan]
) -> tuple[Plan, BatchPlan, tuple[str, ...]]:
    """The plan of the least capacity that the policy takes, its placement, and what it refused before.

    fitted: the plan of a capacity. First a rank has no room for the longest document, then it has. Raises UsageError
    for a policy that is not known, InfeasibleError for one that refuses both, RunError for one that breaks a rule.
    """
    chosen, longest = named(policy), max(lengths)
    plan = fitted(-(-longest // HALVES) + SLACK)
    try:
        return plan, _by(chosen, lengths, plan), ()
    except InfeasibleError as error:
        plan = fitted(max(longest, plan.capacity))
        return plan, _by(chosen, lengths, plan), (f"{error}; verified with {plan.capacity}",)


def told(batch: BatchPlan) -> Placed:
    """What a report says of a placement."""
    chunks = sum(piece.tokens < batch.lengths[piece.sequence] for piece in batch.pieces)
    return Placed(batch.policy, sum(len(team.ranks) > 1 for team in batch.teams), chunks, len(batch.moves))


def _by(policy: Policy, lengths: Sequence[int], plan: Plan) -> BatchPlan:
    machine = Machine.from_snapshot(plan.machine) if plan.machine else load(f"cpu-gloo@{plan.mesh.ranks}")
    known = terms_of(plan, machine)
    # Room is small here so that documents are shared or cut. Beside the activations of a model that is small, too, keys
    # would fill it, and nothing would be cut: they are taken to weigh nothing.
    terms = replace(known, bounds=replace(known.bounds, state=0.0))
    batch = policy(lengths, terms)
    wrong = complaints(batch, terms.bounds)
    if wrong:
        raise RunError(f"the placement by {batch.policy} breaks a rule: {wrong[0]}")
    return batch
