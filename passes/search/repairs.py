"""When nothing fits: a table mesh -> reason, and what would make it fit, each tried and priced."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from math import ceil

from fourfold.hardware import load
from fourfold.hardware.errors import FourfoldError, ProfileError
from fourfold.hardware.spec import parse
from fourfold.hardware.topology import Machine
from fourfold.ir.answer import Answer, Refusal
from fourfold.ir.plan import Optimizer, Plan
from fourfold.ir.workload import Workload

Try = Callable[[Plan, Machine], Answer | None]
"""Plans on a machine, or None where nothing fits."""

SHOWN = 5
"""Refused meshes in the message; the rest are counted, where they are at least two."""

OFFERED = 6
"""Repairs in the message: the fastest."""

SHORTEST = 256
FACTORS = (2, 4, 8, 16, 32, 64)

SMALL_STATE = 2.0
"""Bytes a parameter of an optimizer that keeps its two moments in 8 bits."""


def infeasible(plan: Plan, machine: Machine, refused: Sequence[Refusal], attempt: Try) -> str:
    """The message of the InfeasibleError: every mesh with its reason, then the repairs that work, a line each."""
    limit = (machine.device.usable - machine.device.reserve) / 2**30
    lines = [f"{plan.graph.name} does not fit {machine.spec} ({_ranks(machine)}, {limit:.1f} GiB each):"]
    width = max(len(one.mesh) for one in refused)
    shown = refused if len(refused) <= SHOWN + 1 else refused[:SHOWN]
    lines += [f"  {one.mesh:<{width}}  {one.reason}" for one in shown]
    if len(refused) > len(shown):
        lines.append(f"  and {len(refused) - len(shown)} meshes more, none of which fits")
    works = sorted(repairs(plan, machine, attempt), key=lambda pair: pair[1])[:OFFERED]
    if not works:
        tried = "shorter sequences, a smaller optimizer state, no pins, more nodes, and two of these together"
        return "\n".join([*lines, f"Nothing tried makes it fit: {tried}"])
    lines.append("It fits with one of:")
    width = max(len(text) for text, _ in works)
    return "\n".join([*lines, *(f"  {text:<{width}}  {seconds:.3g} s a step" for text, seconds in works)])


def repairs(plan: Plan, machine: Machine, attempt: Try) -> Iterator[tuple[str, float]]:
    """Changes that make the plan feasible, with the seconds of a step after them: one alone, or two where none does."""
    alone = list(_alone(plan, machine, attempt, _changes(plan)))
    yield from alone
    if alone:
        return
    for text, changed in _loosened(plan):
        for other, seconds in _alone(changed, machine, attempt, _state(changed)):
            yield f"{text}, and {other}", seconds


def _alone(
    plan: Plan, machine: Machine, attempt: Try, changes: Iterable[tuple[str, Plan]]
) -> Iterator[tuple[str, float]]:
    """Of `changes` those that work, and the least of shorter sequences and of larger machines that do."""
    for text, changed in changes:
        yield from _tried(text, changed, machine, attempt)
    for length in _shorter(plan.workload.longest):
        changed = replace(plan, workload=cut_to(plan.workload, length))
        works = list(_tried(f"sequences of at most {length} tokens", changed, machine, attempt))
        if works:
            yield works[0]
            break
    for larger in _larger(machine):
        changed = replace(plan, machine=larger.snapshot())
        works = list(_tried(f"{larger.spec} ({_ranks(larger)})", changed, larger, attempt))
        if works:
            yield works[0]
            break


def _ranks(machine: Machine) -> str:
    return f"{machine.ranks} rank" + ("s" if machine.ranks > 1 else "")


def cut_to(workload: Workload, length: int) -> Workload:
    """The same tokens in sequences of at most `length`."""
    counts: dict[int, int] = {}
    for size, count in workload.lengths:
        pieces = ceil(size / length)
        counts[ceil(size / pieces)] = counts.get(ceil(size / pieces), 0) + count * pieces
    return Workload(tuple(sorted(counts.items())))


def _changes(plan: Plan) -> Iterator[tuple[str, Plan]]:
    for name in plan.pins:
        yield f"no pin of {name}", replace(plan, pins={k: v for k, v in plan.pins.items() if k != name})
    if len(plan.pins) > 1:
        yield "no pins", replace(plan, pins={})
    yield from _state(plan)


def _loosened(plan: Plan) -> Iterator[tuple[str, Plan]]:
    """The first of two changes: all pins given up, or the smaller state."""
    if plan.pins:
        yield "no pins" if len(plan.pins) > 1 else f"no pin of {next(iter(plan.pins))}", replace(plan, pins={})
    yield from _state(plan)


def _state(plan: Plan) -> Iterator[tuple[str, Plan]]:
    if plan.optimizer.state > SMALL_STATE:
        smaller = replace(plan, optimizer=Optimizer("8-bit", SMALL_STATE))
        yield f"an optimizer of {SMALL_STATE:g} bytes a parameter instead of {plan.optimizer.state:g}", smaller


def _shorter(length: int) -> Iterator[int]:
    while length > SHORTEST:
        length = max(SHORTEST, length // 2)
        yield length


def _larger(machine: Machine) -> Iterator[Machine]:
    """All devices of its nodes, then more nodes, when the machine is named as nodes of one kind."""
    asked = parse(machine.spec)
    for factor in (1, *FACTORS) if asked.devices else FACTORS:
        nodes = (asked.nodes or 1) * factor
        try:
            yield load(asked.name if nodes == 1 else f"{asked.name}:{nodes}")
        except ProfileError:
            return


def _tried(text: str, plan: Plan, machine: Machine, attempt: Try) -> Iterator[tuple[str, float]]:
    try:
        answer = attempt(plan, machine)
    except FourfoldError:
        return
    if answer is not None:
        yield text, answer.estimate.step
