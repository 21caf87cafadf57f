"""What must hold of every plan, after every pass: one small function a rule, each naming what breaks it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from fourfold.hardware.errors import UsageError
from fourfold.ir.conversion import convertible
from fourfold.ir.mesh import AXES
from fourfold.ir.ops import rules
from fourfold.ir.plan import RECOMPUTE, SPLIT, Layout, Plan, damaged
from fourfold.ir.rule import State, divides
from fourfold.ir.schedule import Schedule, ScheduleError
from fourfold.ir.schedule_checks import check
from fourfold.ir.sequence import METHODS
from fourfold.ir.sequence.tokens import LAYOUTS
from fourfold.ir.states import states_of

Rule = Callable[[Plan], Iterator[str]]


def degrees_fill_the_machine(plan: Plan) -> Iterator[str]:
    """The degrees multiply to the ranks of the machine the plan carries."""
    mesh, ranks = plan.mesh, ranks_of(plan.machine)
    if min(mesh.dp, mesh.tp, mesh.pp, mesh.sp) < 1:
        yield f"degrees are at least 1, not dp={mesh.dp} tp={mesh.tp} pp={mesh.pp} sp={mesh.sp}"
    named = sorted(mesh.order) == sorted(AXES)
    if not named or (mesh.dp > 1 and mesh.sp > 1 and mesh.stride("dp") < mesh.stride("sp")):
        yield f"the order names each of {', '.join(AXES)} once, dp before sp, not {', '.join(mesh.order)}"
        return
    if ranks is not None and mesh.ranks != ranks:
        yield f"{mesh} is {mesh.ranks} ranks, and the machine has {ranks}"


def zero_is_a_stage(plan: Plan) -> Iterator[str]:
    """ZeRO 0 to 3."""
    if plan.zero not in (0, 1, 2, 3):
        yield f"ZeRO stages are 0, 1, 2 and 3, not {plan.zero}"


def micro_steps_hold_the_workload(plan: Plan) -> Iterator[str]:
    """A micro-step holds the longest sequence, in whole buckets that the tensor axis can cut."""
    if plan.micro_steps < 1:
        yield f"a step has at least one micro-step, not {plan.micro_steps}"
    if plan.bucket < 1 or plan.bucket % plan.mesh.tp:
        yield f"buckets of {plan.bucket} tokens cannot be cut by tp={plan.mesh.tp}"
    elif plan.capacity % plan.bucket:
        yield f"a capacity of {plan.capacity} tokens is not whole buckets of {plan.bucket}"
    if plan.capacity * plan.mesh.sp < plan.workload.longest:
        yield f"a capacity of {plan.capacity} tokens is less than the longest sequence, {plan.workload.longest}"


def calls_have_a_recompute_mode(plan: Plan) -> Iterator[str]:
    """One known word for every call, or none at all before it is decided."""
    modes, calls = plan.recompute, len(plan.graph.calls)
    if modes and len(modes) != calls:
        yield f"{len(modes)} recompute modes for {calls} calls"
    yield from (
        f"recompute {mode!r} is none of {', '.join(RECOMPUTE)}"
        for mode in dict.fromkeys(modes)
        if mode not in RECOMPUTE
    )


def cuts_are_legal(plan: Plan) -> Iterator[str]:
    """Every cut is one that a rule of its op allows on this axis, and names a node of its block."""
    for name, layout in plan.layouts.items():
        if name not in plan.graph.blocks:
            yield f"there is a layout for {name!r}, which is no block of {plan.graph.name}"
            continue
        block = plan.graph.blocks[name]
        values, nodes = block.values(), {node.name: node for node in block.nodes}
        for node, cut in layout.cuts.items():
            if node not in nodes:
                yield f"{name} has no op {node!r} to cut"
            elif not any(cut in rule.cuts(plan.mesh.tp) for rule in rules(nodes[node], values)):
                yield f"tp={plan.mesh.tp} cannot cut {cut} of {name}.{node}"
        for value, state in layout.states.items():
            if state != "R" and not _divided(values[value].shape, State.parse(state), plan.mesh.tp):
                yield f"tp={plan.mesh.tp} cannot cut {value} of {name} as {state}"


def values_can_be_moved(plan: Plan) -> Iterator[str]:
    """Each reader can have what it needs from what is made; a parameter is stored in one way."""
    for name, block in plan.graph.blocks.items():
        made, needs = states_of(block, plan.layouts.get(name, Layout()))
        cuts: dict[str, State] = {}
        for node in block.nodes:
            for value, state in zip(node.refs(), needs[node.name], strict=True):
                if value in made and not convertible(made[value], state):
                    yield f"{name}.{node.name} needs {value} as {state}, and it is made as {made[value]}"
                if value in block.parameters and state.kind == "S" and cuts.setdefault(value, state) != state:
                    yield f"{name}.{value} is cut as {cuts[value]} and as {state}"


def calls_agree_on_states(plan: Plan) -> Iterator[str]:
    """A value leaves one block in the state in which the next takes it."""
    calls, seen = plan.graph.calls, set()
    for call in calls:
        block = plan.graph.blocks[call.block]
        for name, source in zip(block.inputs, call.sources, strict=True):
            giver = None if source.call < 0 else calls[source.call].block
            output = "" if giver is None else plan.graph.blocks[giver].outputs[source.output]
            key = call.block, name, giver, output
            if key in seen:
                continue
            seen.add(key)
            given, taken = _state(plan.layouts, giver, output), _state(plan.layouts, call.block, name)
            if taken != given:
                yield f"{call.block} takes {name} as {taken}, and {giver} gives {given}"


def stages_cut_the_calls(plan: Plan) -> Iterator[str]:
    """Stages begin at different calls, in order, equally many on each rank; or they are not decided yet."""
    bounds, calls, pp = plan.bounds, len(plan.graph.calls), plan.mesh.pp
    if not bounds:
        return
    if any(a >= b for a, b in zip((0, *bounds), (*bounds, calls), strict=True)):
        yield f"stages that begin at calls {', '.join(map(str, bounds))} do not cut {calls} calls in order"
    if len(bounds) + 1 != pp * plan.virtual:
        yield f"{len(bounds) + 1} stages are not {plan.virtual} on each of {pp} ranks, as {plan.schedule} has them"
    if plan.zero == 2:
        yield "ZeRO 2 is not for pipelines; use 0, 1 or 3"
    if plan.schedule in SPLIT and plan.zero == 3:
        yield f"ZeRO 3 would gather the weights for both halves of {plan.schedule}'s backward; use ZeRO 0 or 1"


def an_order_can_be_executed(plan: Plan) -> Iterator[str]:
    """A solver's order is one of this plan's micro-steps over its stages, each action once, without dead-lock."""
    if not plan.order:
        return
    try:
        order = Schedule.parse(plan.order)
        check(order)
    except ScheduleError as error:
        yield f"its order is no schedule: {error}"
        return
    if plan.schedule != "solved" or (order.ranks, order.stages) != (plan.mesh.pp, plan.mesh.pp):
        yield f"an order of {order.stages} stages on {order.ranks} ranks is not for {plan.schedule} on {plan.mesh}"
    if order.micro_steps != plan.micro_steps:
        yield f"an order of {order.micro_steps} micro-steps is not for a step of {plan.micro_steps}"


def documents_can_be_shared(plan: Plan) -> Iterator[str]:
    """The method and layout are known, and the ranks that exchange heads divide the group."""
    how, sp = plan.sharing, plan.mesh.sp
    if sp == 1:
        return
    if how.method not in METHODS or how.method == "whole":
        yield f"sequence method {how.method!r} is none of {', '.join(name for name in METHODS if name != 'whole')}"
    if how.layout not in LAYOUTS:
        yield f"layout {how.layout!r} is none of {', '.join(LAYOUTS)}"
    if how.ulysses < 1 or sp % how.ulysses or (how.method == "ulysses" and how.ulysses != sp):
        yield f"{how.ulysses} ranks that exchange heads do not divide sp={sp} for {how.method}"


OF_SETTINGS: tuple[Rule, ...] = (
    degrees_fill_the_machine,
    zero_is_a_stage,
    micro_steps_hold_the_workload,
    calls_have_a_recompute_mode,
    stages_cut_the_calls,
    an_order_can_be_executed,
    documents_can_be_shared,
)
OF_LAYOUTS: tuple[Rule, ...] = (cuts_are_legal, values_can_be_moved, calls_agree_on_states)
"""Rules that see nothing of a plan but its graph, layouts and tensor degree."""
RULES = (*OF_SETTINGS, *OF_LAYOUTS)


def complaints(plan: Plan, rules: tuple[Rule, ...] = RULES) -> tuple[str, ...]:
    """What is wrong with a plan by the first rule it breaks: a later one may not stand what that one refuses."""
    for rule in rules:
        found = tuple(rule(plan))
        if found:
            return found
    return ()


def verified(plan: Plan) -> Plan:
    """The plan itself. Raises UsageError when a rule is broken: a plan from a file may have been edited."""
    found = complaints(plan)
    if found:
        raise UsageError(f"the plan cannot be run: {'; '.join(found[:3])}; plan again")
    return plan


def sound(plan: Plan, source: str) -> Plan:
    """`verified` for a plan from a file, where a rule may stumble over what no pass writes. Raises UsageError."""
    try:
        return verified(plan)
    except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise damaged(source, error) from error


def ranks_of(machine: Mapping[str, object]) -> int | None:
    """Ranks of a machine's snapshot; None where it holds no machine."""
    inner = machine.get("machine")
    if not isinstance(inner, Mapping):
        return None
    return sum(int(group["count"] * group["node"]["devices"]) for group in inner["groups"])


def _state(layouts: Mapping[str, Layout], block: str | None, name: str) -> str:
    return "R" if block is None or block not in layouts else layouts[block].states.get(name, "R")


def _divided(shape: tuple[int, ...], state: State, n: int) -> bool:
    return state.kind == "S" and 0 <= state.dim < len(shape) and divides(n, shape[state.dim])
