"""When nothing fits: a table mesh -> reason, and what would make it fit, each tried and priced."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from fourfold.hardware import load
from fourfold.hardware.errors import FourfoldError, ProfileError
from fourfold.hardware.topology import Machine
from fourfold.ir.answer import Refusal
from fourfold.ir.plan import Optimizer, Plan
from fourfold.ir.workload import Workload
from fourfold.passes.search import Search


def infeasible(plan: Plan, machine: Machine, refused: tuple[Refusal, ...]) -> str:
    """The message of the InfeasibleError: every mesh with its reason, then the repairs that work."""
    rows = "; ".join(f"{r.mesh}: {r.reason}" for r in refused[:6])
    works = list(repairs(plan, machine))
    advice = " or ".join(f"{text} ({seconds:.2f} s a step)" for text, seconds in works)
    return f"{plan.graph.name} does not fit {machine.spec} ({machine.ranks} ranks): {rows}. " + (
        f"It fits with {advice}" if works else "Shorter sequences, fewer bytes of optimizer state and 64 times the nodes do not help either"
    )


def repairs(plan: Plan, machine: Machine) -> Iterator[tuple[str, float]]:
    """Single changes that make the plan feasible, with the seconds of a step after them."""
    if plan.pins:
        yield from _tried("no pins", replace(plan, pins={}), machine)
    if plan.optimizer.state > 2:
        yield from _tried("an 8-bit optimizer (2 bytes a parameter)", replace(plan, optimizer=Optimizer("8-bit", 2.0)), machine)
    length = plan.workload.longest
    while length > 256:
        length //= 2
        shorter = Workload.of(min(n, length) for n, count in plan.workload.lengths for _ in range(min(count, 512)))
        found = list(_tried(f"sequences of at most {length} tokens", replace(plan, workload=shorter), machine))
        if found:
            yield found[0]
            break
    yield from _more_nodes(plan, machine)


def _more_nodes(plan: Plan, machine: Machine) -> Iterator[tuple[str, float]]:
    for factor in (2, 4, 8, 16, 32, 64):
        larger = _larger(machine, factor)
        if larger is None:
            return
        found = list(_tried(f"{larger.spec} ({larger.ranks} ranks)", replace(plan, machine=larger.snapshot()), larger))
        if found:
            yield found[0]
            return


def _larger(machine: Machine, factor: int) -> Machine | None:
    """`factor` times as many nodes, when the machine is named as nodes of one kind."""
    name, _, count = machine.spec.replace("*", ":").partition(":")
    try:
        return load(f"{name}:{int(count or 1) * factor}")
    except (ProfileError, ValueError):
        return None


def _tried(text: str, plan: Plan, machine: Machine) -> Iterator[tuple[str, float]]:
    try:
        answer = Search(machine, 0)(plan)
    except FourfoldError:
        return
    if answer is not None:
        yield text, answer.estimate.step
