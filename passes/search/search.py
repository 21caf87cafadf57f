"""The search: every mesh, ZeRO stage and number of micro-steps through all passes, priced, and the best few kept."""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from math import lcm

from fourfold.ir.answer import Answer, Candidate, Refusal
from fourfold.ir.mesh import Mesh
from fourfold.ir.plan import Decision, Plan
from fourfold.ir.verify import OF_SETTINGS, RULES, complaints
from fourfold.passes.price.costs import Costs
from fourfold.passes.search.deciding import Pass, Watch, unwatched
from fourfold.passes.search.decisions import decisions
from fourfold.passes.search.exhaustive import Exhaust, small
from fourfold.passes.search.meshes import meshes
from fourfold.passes.search.orders import orders
from fourfold.passes.search.refusals import refusal
from fourfold.passes.search.settings import keeping, settings

THOROUGH = 16
"""Ranks up to which every mesh is priced to its end, so that each one that does not fit is told."""


@dataclass(frozen=True, slots=True)
class _Open:
    """A plan on its way through the passes, ordered by the seconds its step cannot go below; `done` passes ran."""

    floor: float
    number: int
    done: int
    plan: Plan

    def __lt__(self, other: _Open) -> bool:
        return (self.floor, self.number) < (other.floor, other.number)


@dataclass(frozen=True, slots=True)
class Search:
    """Decides mesh, ZeRO stage and micro-steps, and runs the passes for the rest.

    Given: a plan that names graph, machine, workload, precision, optimizer and pins. Minimises: seconds of one step.
    Subject to: the upper memory band within the device; every sequence within a micro-step; the pins. Best first: the
    plan with the least floor goes on, so what is finished first is the best of its mesh and ZeRO stage, and the rest
    need no pricing. Exact for what the passes decide one by one, as long as no pass lowers a plan's floor; few layers
    on few ranks are then looked at to the end, everything decided at once.
    """

    costs: Costs
    passes: Sequence[Pass]
    top: int = 3
    watch: Watch = unwatched
    exact: bool = True
    _verified: dict[tuple[int, int], object] = field(default_factory=dict)

    def __call__(self, plan: Plan) -> tuple[Answer | None, tuple[Refusal, ...]]:
        """The answer, or None when nothing fits; and every mesh that does not, with the reason."""
        started = time.process_time()
        found: list[Candidate] = []
        lacking: dict[Mesh, list[tuple[float, Plan]]] = {}
        beaten: list[float] = []
        tried = keeping(plan, meshes(plan, self.costs.machine.ranks))
        for mesh in chain(tried, self._reordered(plan, found)):
            start = replace(plan, mesh=mesh, bucket=lcm(plan.bucket, mesh.tp))
            best, short = self._mesh(start, self._limit(found), beaten)
            found += best
            # What fits does not depend on the order.
            if not best and short and mesh not in (one.plan.mesh.ordered(mesh.order) for one in found):
                lacking[mesh] = short
        ranked = sorted(found, key=lambda candidate: candidate.estimate.step)
        if self.exact and small(plan, self.costs.machine.ranks):
            faster = Exhaust(self.costs, self.passes)(plan, ranked[0] if ranked else None)
            ranked = [faster, *ranked] if faster else ranked
            if ranked:
                lacking.pop(ranked[0].plan.mesh, None)
        refused = tuple(refusal(mesh, short, ranked) for mesh, short in lacking.items())
        if not ranked:
            return None, refused
        chosen = replace(ranked[0].plan, log=tuple(self._log(ranked)))
        spent = time.process_time() - started
        bound = min((*beaten, ranked[0].estimate.step))
        beside = tuple(ranked[1 : self.top + 1])
        return Answer(chosen, ranked[0].estimate, beside, refused, solving=spent, bound=bound), refused

    def _reordered(self, plan: Plan, found: Sequence[Candidate]) -> Iterator[Mesh]:
        """Then the meshes of the best plans, on few ranks of all that fit, with other axes inside the node.

        What was left out for its floor has tensor ranks inside the node, where its floor is least.
        """
        if "order" in plan.pins:
            return
        many = self.costs.machine.ranks > THOROUGH
        best = heapq.nsmallest(self.top + 1 if many else len(found), found, key=lambda one: one.estimate.step)
        for mesh in dict.fromkeys(candidate.plan.mesh for candidate in best):
            yield from orders(mesh, self.costs.machine)

    def _limit(self, found: Sequence[Candidate]) -> float:
        """Seconds that a plan must stay below to be among those asked for; on few ranks everything is priced."""
        wanted = self.top + 1
        if self.costs.machine.ranks <= THOROUGH or len(found) < wanted:
            return float("inf")
        return sorted(candidate.estimate.step for candidate in found)[wanted - 1]

    def _mesh(self, plan: Plan, limit: float, beaten: list[float]) -> tuple[list[Candidate], list[tuple[float, Plan]]]:
        """The best plan of each ZeRO stage of one mesh; and the plans that do not fit, with the bytes they lack."""
        stages: dict[int, list[Plan]] = {}
        for one in settings(plan):
            stages.setdefault(one.zero, []).append(one)
        lacking: list[tuple[float, Plan]] = []
        best = [self._stage(plans, lacking, limit, beaten) for plans in stages.values()]
        return [candidate for candidate in best if candidate is not None], lacking

    def _stage(
        self, plans: Sequence[Plan], lacking: list[tuple[float, Plan]], limit: float, beaten: list[float]
    ) -> Candidate | None:
        """The fastest of these plans; those that do not fit are added to `lacking`.

        None, with the least floor left in `beaten`, as soon as none can be faster than `limit`.
        """
        queue = [_Open(0.0, i, 0, plan) for i, plan in enumerate(plans)]
        while queue:
            first = heapq.heappop(queue)
            if first.floor > limit:
                beaten.append(first.floor)
                return None
            if first.done > len(self.passes):
                return Candidate(first.plan, self.costs.priced(first.plan).estimate())
            following = self._next(first, lacking)
            if following is not None:
                heapq.heappush(queue, following)
        return None

    def _next(self, now: _Open, lacking: list[tuple[float, Plan]]) -> _Open | None:
        """One pass further, if the last kept the rules; after all, with its exact time, or None if it does not fit."""
        if now.done:
            self._verify(now.plan, type(self.passes[now.done - 1]).__name__)
        if now.done == len(self.passes):
            priced = self.costs.priced(now.plan)
            short = priced.memory().shortfall(self.costs.machine.device)
            if short > 0:
                lacking.append((short, now.plan))
                return None
            return replace(now, floor=priced.estimate().step, done=now.done + 1)
        step = self.passes[now.done]
        plan = step(now.plan)
        self.watch(type(step).__name__, plan)
        # Before the tensor axis cuts anything, each rank would seem to do all.
        floor = self.costs.priced(plan).floor if plan.layouts else now.floor
        return replace(now, floor=floor, done=now.done + 1, plan=plan)

    def _verify(self, plan: Plan, last: str) -> None:
        """Asserts that pass `last` kept every rule; equal layouts are looked at once."""
        key = id(plan.layouts), plan.mesh.tp
        wrong = complaints(plan, OF_SETTINGS if key in self._verified else RULES)
        assert not wrong, f"{last} broke the plan: {'; '.join(wrong)}"
        self._verified[key] = plan.layouts

    def _log(self, ranked: Sequence[Candidate]) -> Iterator[Decision]:
        """Every decision behind the best plan."""
        yield from decisions(ranked, self.costs)
        for one in self.passes:
            yield from one.decisions(ranked[0].plan)
