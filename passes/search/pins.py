"""What the user pinned: degrees and settings by name, cuts by module name; all checked before anything is searched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatch

from fourfold.hardware.errors import UsageError
from fourfold.ir.graph import Block, Graph, Node
from fourfold.ir.mesh import AXES
from fourfold.ir.ops import op_of, rules
from fourfold.ir.plan import RECOMPUTE, SOLVABLE, SPLIT, VIRTUAL, Plan
from fourfold.ir.rule import WHOLE
from fourfold.ir.sequence import METHODS
from fourfold.ir.sequence.tokens import LAYOUTS

DEGREES = ("dp", "tp", "pp", "sp")
COUNTS = ("zero", "capacity", "micro_steps")
PINS = (*DEGREES, *COUNTS, "order", "recompute", "schedule", "sequence", "layout", "ulysses", "travel")
"""Pins that name a degree or a setting; any other pin is a module name (globs allowed) with a label to cut."""

WORDS: Mapping[str, tuple[str, ...]] = {
    "recompute": RECOMPUTE,
    "schedule": ("1f1b", "gpipe", *VIRTUAL, *SPLIT),
    "sequence": tuple(name for name in METHODS if name != "whole"),
    "layout": tuple(LAYOUTS),
    "travel": ("float32", "bfloat16"),
}
"""What pins that name a setting by a word may say."""

CUTTABLE = ("matmul", "attention", "gather", "loss", "norm")
"""Kinds of ops that a pin by module name reaches."""


def number(pins: Mapping[str, str | int], name: str) -> int | None:
    """The whole number a pin gives; None when it is not pinned. Raises UsageError for anything else."""
    if name not in pins:
        return None
    text = str(pins[name])
    if not text.isdigit() or (int(text) == 0 and name != "zero"):
        raise UsageError(f"pin {name}={text}: give a whole number of at least {0 if name == 'zero' else 1}")
    return int(text)


def pinned_order(pins: Mapping[str, str | int]) -> tuple[str, ...]:
    """The pinned order of axes from the outermost, such as "pp,tp,dp,sp"; none where it is left open.

    Raises UsageError for other words, and for sequence outside data: the ranks of a pool ascend as its places do.
    """
    if "order" not in pins:
        return ()
    named = tuple(word.strip() for word in str(pins["order"]).split(","))
    if sorted(named) != sorted(AXES):
        raise UsageError(f"pin order={pins['order']}: name each of {','.join(AXES)} once, from the outermost")
    if named.index("dp") > named.index("sp"):
        raise UsageError(f"pin order={pins['order']}: sp lies inside dp; name dp before it")
    return named


def check_pins(plan: Plan) -> None:
    """Raises UsageError for the first pin that no plan could keep."""
    pins, graph = plan.pins, plan.graph
    pinned_order(pins)
    for name in (*DEGREES, *COUNTS):
        number(pins, name)
    for name, known in WORDS.items():
        if pins.get(name, known[0]) not in known:
            raise UsageError(f"pin {name}={pins[name]}: it may be {', '.join(known[:-1])} or {known[-1]}")
    calls = len(graph.calls)
    if (number(pins, "pp") or 1) > calls:
        raise UsageError(
            f"pin pp={pins['pp']}: {graph.name} has {calls} calls to cut into stages; pin at most pp={calls}"
        )
    if (number(pins, "zero") or 0) > 3:
        raise UsageError(f"pin zero={pins['zero']}: ZeRO stages are 0, 1, 2 and 3")
    if number(pins, "zero") == 2 and (number(pins, "pp") or 1) > 1:
        raise UsageError(f"pins zero=2 and pp={pins['pp']}: ZeRO 2 is not for pipelines; pin zero=0, 1 or 3, or pp=1")
    _check_schedule_pin(pins)
    capacity, longest = number(pins, "capacity"), plan.workload.longest
    shared = capacity * (number(pins, "sp") or 1) if capacity is not None else longest
    if "sp" not in pins and plan.mesh.sp == 1 and shared < longest:
        raise UsageError(f"pin capacity={capacity}: a micro-step must hold the longest sequence, {longest} tokens")
    _check_tensor_pin(graph, number(pins, "tp") or 1)
    pinned_cuts(plan)


def _check_schedule_pin(pins: Mapping[str, str | int]) -> None:
    """Raises UsageError for pins that do not go with the pinned schedule."""
    schedule, steps = pins.get("schedule"), number(pins, "micro_steps") or 1
    if schedule in SPLIT and (number(pins, "zero") or 0) > 1:
        raise UsageError(
            f"pins schedule={schedule} and zero={pins['zero']}: between the two halves of a backward weights stay "
            "whole; pin zero=0 or zero=1, or schedule=1f1b"
        )
    if schedule == "solved" and steps > SOLVABLE:
        raise UsageError(
            f"pins schedule=solved and micro_steps={steps}: a solver orders at most {SOLVABLE} micro-steps; "
            "pin schedule=zero_bubble for more"
        )


def pinned_cuts(plan: Plan) -> dict[tuple[str, str], str]:
    """Pins by module glob as (block, node) -> label. Raises UsageError when a glob matches nothing."""
    found: dict[tuple[str, str], str] = {}
    for pattern, label in plan.pins.items():
        if pattern in PINS:
            continue
        matched = [key for key, name in _cuttable(plan.graph) if _matches(name, pattern)]
        if not matched:
            names = ", ".join(name for _, name in list(_cuttable(plan.graph))[:8])
            settings = ", ".join(PINS)
            raise UsageError(f"pin {pattern!r} matches no op; pin one of {settings} or a module such as {names}")
        found.update(dict.fromkeys(matched, str(label)))
    return found


def _matches(name: str, pattern: str) -> bool:
    """A glob over the whole name, or over its end from some dot on."""
    return fnmatch(name, pattern) or fnmatch(name, f"*.{pattern}")


def _cuttable(graph: Graph) -> Iterator[tuple[tuple[str, str], str]]:
    for block in graph.blocks.values():
        for node in block.nodes:
            if op_of(node).kind in CUTTABLE:
                yield (block.name, node.name), f"{block.name}.{node.name}"


def _check_tensor_pin(graph: Graph, tp: int) -> None:
    """Raises the error of a pinned degree that cannot cut the heads."""
    for block in graph.blocks.values():
        for node in block.nodes:
            if node.op == "attention" and all(rule.cuts(tp) == (WHOLE,) for rule in rules(node, block.values())):
                raise UsageError(_indivisible(block, node, tp))


def _indivisible(block: Block, node: Node, tp: int) -> str:
    heads = block.value(node.refs()[0]).shape[1]
    legal = [str(k) for k in range(1, heads + 1) if heads % k == 0]
    where = ".".join(part for part in (block.name, node.module) if part)
    may = f"{', '.join(legal[:-1])} or {legal[-1]}" if len(legal) > 1 else legal[0]
    return f"tp={tp} cannot cut label h of {where}: {heads} heads; tp may be {may}"
