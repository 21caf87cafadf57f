"""Why the search chose what it chose: the alternatives to mesh, ZeRO stage and micro-steps, with their prices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from fourfold.ir.answer import Candidate
from fourfold.ir.plan import Decision, Plan
from fourfold.passes.price.costs import Costs
from fourfold.passes.search.settings import settings


def decisions(ranked: Sequence[Candidate], costs: Costs) -> Iterator[Decision]:
    """What was decided by pricing whole plans; `ranked` holds the best of each mesh and ZeRO stage, fastest first."""
    plan = ranked[0].plan
    meshes: dict[str, float] = {}
    for candidate in ranked:
        meshes.setdefault(str(candidate.plan.mesh), candidate.estimate.step)
    yield Decision("Search", "mesh", str(plan.mesh), tuple(meshes.items()))
    stages = tuple((f"ZeRO {c.plan.zero}", c.estimate.step) for c in ranked if c.plan.mesh == plan.mesh)
    yield Decision("Search", "ZeRO stage", f"ZeRO {plan.zero}", stages)
    yield Decision("Search", "micro-steps", words(plan), tuple(_micro_steps(plan, costs)))


def words(plan: Plan) -> str:
    """How many micro-steps of what size."""
    return f"{plan.micro_steps} of at most {plan.capacity} tokens a rank"


def _micro_steps(plan: Plan, costs: Costs) -> Iterator[tuple[str, float]]:
    """The numbers next to the chosen one, all else equal, and whether they fit."""
    others = [one for one in settings(replace(plan, pins={})) if one.zero == plan.zero]
    sizes = [one.capacity for one in others]
    at = sizes.index(plan.capacity) if plan.capacity in sizes else 0
    for one in others[max(0, at - 1) : at + 2]:
        priced = costs.priced(replace(plan, capacity=one.capacity, micro_steps=one.micro_steps))
        fits = priced.memory().fits(costs.machine.device)
        yield words(one) + ("" if fits else " (does not fit)"), priced.estimate().step
