"""The settings of one mesh worth pricing: ZeRO stages, and how many micro-steps of what capacity make a step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from math import ceil

from fourfold.hardware.errors import UsageError
from fourfold.ir.mesh import Mesh
from fourfold.ir.plan import SOLVABLE, SPLIT, VIRTUAL, Plan
from fourfold.passes.price.load import rounded
from fourfold.passes.search.meshes import layers
from fourfold.passes.search.pins import number

TRIED = ("interleaved-2", "interleaved-4")
"""Schedules beside 1F1B and zero-bubble that are priced unasked; others are there to be pinned."""

FEW = 16
"""Ranks up to which the numbers of micro-steps are tried densely; more ranks have meshes enough to choose from."""

DENSE = {True: (16, 1.2), False: (4, 1.5)}
"""For few ranks and for many: every number of micro-steps up to this one is tried, above it by this factor."""

MANY = 64
"""Numbers of micro-steps of which each is tried where everything is."""

SPARE = 1.05
"""Room in a micro-step beyond its mean, so that sequences of many lengths can be dealt."""


def settings(plan: Plan) -> Iterator[Plan]:
    """Plans of one mesh that differ in ZeRO stage, schedule, capacity and number of micro-steps; pins respected.

    A pool of one rank has nothing to shard; ZeRO 2 differs from 1 only when several micro-steps reduce, and is not
    for pipelines, whose micro-steps keep their whole gradients or shard everything.
    """
    for zero in zeros(plan):
        for capacity, steps in _micro_steps(plan, _counts(plan)):
            for schedule in schedules(plan, steps):
                one = replace(plan, zero=zero, capacity=capacity, micro_steps=steps, schedule=schedule)
                if _runs(one) and (zero != 2 or steps > 1 or number(plan.pins, "zero") == 2):
                    yield one


def every_setting(plan: Plan) -> Iterator[Plan]:
    """The same with every number of micro-steps up to MANY, and every schedule that can be run."""
    most = most_micro_steps(plan)
    counts = range(1, most + 1) if most <= MANY else _counts(plan)
    for capacity, steps in _micro_steps(plan, counts):
        for zero, schedule in product(zeros(plan), _every_schedule(plan)):
            one = replace(plan, zero=zero, capacity=capacity, micro_steps=steps, schedule=schedule)
            if _runs(one):
                yield one


def keeping(plan: Plan, meshes: Iterable[Mesh]) -> tuple[Mesh, ...]:
    """The meshes that have the pinned ZeRO stage and deal a step into the pinned number of micro-steps.

    Raises UsageError when there is none; for micro-steps with the numbers nearest to the pinned one.
    """
    found = tuple(mesh for mesh in meshes if zeros(replace(plan, mesh=mesh)))
    if not found:
        raise UsageError(
            "pin zero=2: the other pins leave only pipelines, and ZeRO 2 is not for them; pin zero=0, 1 or 3"
        )
    count = number(plan.pins, "micro_steps")
    if count is None:
        return found
    kept = tuple(mesh for mesh in found if any(_micro_steps(replace(plan, mesh=mesh), ())))
    if kept:
        return kept
    free = {name: value for name, value in plan.pins.items() if name != "micro_steps"}
    possible = set()
    for mesh in found:
        one = replace(plan, mesh=mesh, pins=free)
        possible |= {steps for _, steps in _micro_steps(one, range(1, most_micro_steps(one) + 1))}
    raise UsageError(_not_dealt(plan, count, sorted(possible)))


def _not_dealt(plan: Plan, count: int, possible: Sequence[int]) -> str:
    """The error of a pinned number of micro-steps that no mesh can keep."""
    below, above = [n for n in possible if n < count][-1:], [n for n in possible if n > count][:1]
    near = " or ".join(str(n) for n in (*below, *above))
    others = " with the other pins" if len(plan.pins) > 1 else ""
    return (
        f"pin micro_steps={count}: a step of {plan.workload} cannot be dealt into {count} micro-steps of whole "
        f"sequences{others}; the nearest that can be is {near}, the most {possible[-1]}"
    )


def _runs(plan: Plan) -> bool:
    """Whether its schedule goes with the rest: weights stay whole in a split backward, and a solver takes few steps."""
    if plan.mesh.pp == 1 or plan.schedule not in SPLIT:
        return True
    return plan.zero < 2 and (plan.schedule != "solved" or plan.micro_steps <= SOLVABLE)


def zeros(plan: Plan) -> tuple[int, ...]:
    """The ZeRO stages that a mesh can have; none where the pinned one is 2 and the mesh has a pipeline."""
    pinned = number(plan.pins, "zero")
    if pinned is not None:
        return () if pinned == 2 and plan.mesh.pp > 1 else (pinned,)
    return (0,) if plan.mesh.pool == 1 else (0, 1, 3) if plan.mesh.pp > 1 else (0, 1, 2, 3)


def _every_schedule(plan: Plan) -> tuple[str, ...]:
    """As many stages a rank as there are calls for."""
    pinned = plan.pins.get("schedule")
    if plan.mesh.pp == 1 or pinned is not None:
        return (str(pinned or plan.schedule),)
    held = {"1f1b": 1, "gpipe": 1, "zero_bubble": 1, **VIRTUAL}
    return tuple(name for name, virtual in held.items() if plan.mesh.pp * virtual <= len(plan.graph.calls))


def schedules(plan: Plan, steps: int) -> tuple[str, ...]:
    """The schedules worth pricing: several stages a rank only where layers divide and rounds are full."""
    if plan.mesh.pp == 1:
        return (plan.schedule,)
    pinned = plan.pins.get("schedule")
    if pinned is not None:
        return (str(pinned),)
    found = ["1f1b"] if steps == 1 else ["1f1b", "zero_bubble"]
    for name in TRIED:
        virtual = VIRTUAL[name]
        if plan.mesh.pp * virtual <= layers(plan) and steps % plan.mesh.pp == 0:
            found.append(name)
    return tuple(found)


def _micro_steps(plan: Plan, counts: Iterable[int]) -> Iterator[tuple[int, int]]:
    """(capacity, micro-steps) without repeats, from one large micro-step to many small ones."""
    capacity, count = number(plan.pins, "capacity"), number(plan.pins, "micro_steps")
    if count is not None:
        size = _capacity(plan, count) if capacity is None else rounded(capacity, plan.bucket)
        if _makes(plan, size, count):
            yield size, count
        return
    tried = [_capacity(plan, n) for n in counts] if capacity is None else [rounded(capacity, plan.bucket)]
    for size in dict.fromkeys(tried):
        yield size, _steps(plan, size)


def _makes(plan: Plan, size: int, count: int) -> bool:
    """Whether a step is dealt into `count` micro-steps of `size` tokens: lengths that differ leave SPARE in each."""
    if len(plan.workload.lengths) == 1:
        return _steps(plan, size) == count
    room = plan.mesh.dp * size * plan.mesh.sp
    return ceil(plan.workload.tokens / room) <= count <= ceil(SPARE * plan.workload.tokens / room)


def most_micro_steps(plan: Plan) -> int:
    """The most micro-steps worth trying: one longest sequence each."""
    return ceil(ceil(plan.workload.tokens / plan.mesh.dp) / plan.workload.longest)


def _counts(plan: Plan) -> Iterator[int]:
    """1, 2, 3, .. and then ever sparser; those of a pipeline that fill its line without a rest."""
    n, most = 1, most_micro_steps(plan)
    dense, factor = DENSE[plan.mesh.ranks <= FEW]
    while n < most:
        yield n
        n = n + 1 if n < dense else ceil(n * factor)
        n = n if plan.mesh.ranks <= FEW or n <= plan.mesh.pp else min(most, -(-n // plan.mesh.pp) * plan.mesh.pp)
    yield most


def _capacity(plan: Plan, steps: int) -> int:
    """Tokens a rank's micro-step must hold so that `steps` of them hold the workload, whole sequences each."""
    workload, bins = plan.workload, plan.mesh.dp * steps
    if len(workload.lengths) == 1:
        tokens = ceil(workload.sequences / bins) * workload.longest
    else:
        tokens = max(workload.longest, int(SPARE * workload.tokens / bins))
    return rounded(ceil(tokens / plan.mesh.sp), plan.bucket)


def _steps(plan: Plan, capacity: int) -> int:
    """Micro-steps of this capacity that a step takes, as batches are dealt."""
    workload, mesh = plan.workload, plan.mesh
    held = capacity * mesh.sp
    if len(workload.lengths) == 1:
        return ceil(workload.sequences / (mesh.dp * (held // workload.longest)))
    return ceil(workload.tokens / (mesh.dp * held))
