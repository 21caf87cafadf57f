"""The pass that decides which calls keep what their backward needs, and which compute it again (CP-SAT)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from math import ceil

from ortools.sat.python import cp_model

from fourfold.ir.graph import Graph
from fourfold.ir.plan import RECOMPUTE, Decision, Plan
from fourfold.passes.price.costs import Costs
from fourfold.passes.price.line import Line
from fourfold.passes.price.work import BlockWork

NANOSECOND = 1e9
UNBOUNDED = float(2**50)
"""More bytes than any device has."""

EXACT = 1e-7
"""Share of a device's memory to which the room for activations is found."""


@dataclass(frozen=True, slots=True)
class ChooseRecompute:
    """Decides the recompute mode of every call: none, regions (all but attention is done again) or full.

    Given: mesh, ZeRO stage, micro-steps, layouts. Minimises: seconds replayed in one micro-step. Subject to: kept bytes
    plus the largest replayed block within what the device leaves to activations; where nothing is enough, the modes
    that keep least. Equal calls are counted, not named: one integer a block and mode. Source: Checkmate (arXiv
    1910.02653) on whole blocks; "regions" after the selective recompute of Megatron-LM (arXiv 2205.05198).
    """

    costs: Costs

    def __call__(self, plan: Plan) -> Plan:
        """The plan with a mode for every call."""
        priced, only = self.costs.priced(plan), plan.pins.get("recompute")
        modes = [RECOMPUTE[0]] * len(plan.graph.calls)
        known: dict[tuple[object, ...], tuple[str, ...]] = {}
        for line in priced.lines:
            key = (tuple(plan.graph.calls[i].block for i in line.calls), line.in_flight, line.head is None)
            if key not in known:
                known[key] = self._line(line, only)
            for index, mode in zip(line.calls, known[key], strict=True):
                modes[index] = mode
        return replace(plan, recompute=tuple(modes))

    def every(self, plan: Plan) -> Iterator[Plan]:
        """The plan with each mode of each call; none where what is kept at least does not fit."""
        only = plan.pins.get("recompute")
        if not all(self._could_fit(line, only) for line in self.costs.priced(plan).lines):
            return
        for chosen in product(*(_modes(plan.graph, call.block, only) for call in plan.graph.calls)):
            yield replace(plan, recompute=chosen)

    def _could_fit(self, line: Line, only: str | int | None) -> bool:
        """Whether the modes that keep least fit, if they brought nothing back."""
        each = {n: min(line.work[n].kept[m] for m in _modes(line.plan.graph, n, only)) for n in line.counts}
        saved = sum(count * each[name] for name, count in line.counts.items()) * line.in_flight
        return line.memory_with(saved, 0.0).fits(self.costs.machine.device)

    def _line(self, line: Line, only: str | int | None) -> tuple[str, ...]:
        """The modes of the calls of one place in a line of stages."""
        device, blocks = self.costs.machine.device, [line.plan.graph.calls[i].block for i in line.calls]
        if only is None and line.memory().fits(device):
            return (RECOMPUTE[0],) * len(blocks)
        allowed = {name: _modes(line.plan.graph, name, only) for name in line.counts}
        least = {name: min(modes, key=lambda m: line.work[name].kept[m]) for name, modes in allowed.items()}
        leanest = tuple(least[name] for name in blocks)
        saved = sum(line.work[name].kept[least[name]] for name in blocks) * line.in_flight
        again = max((line.work[name].kept["none"] for name in blocks if least[name] != "none"), default=0.0)
        if not line.memory_with(saved, again).fits(device):
            return leanest
        counts = choose(line.work, line.counts, allowed, room_for_activations(line), line.in_flight)
        return leanest if counts is None else tuple(_take(counts, name) for name in blocks)

    def decisions(self, plan: Plan) -> Iterator[Decision]:
        """What was chosen, and the seconds of a step with one mode everywhere; "(does not fit)" where it does not."""
        modes = plan.recompute
        counted = ", ".join(f"{mode} in {modes.count(mode)} calls" for mode in RECOMPUTE if mode in modes)
        over = []
        for mode in RECOMPUTE:
            each = {name: _modes(plan.graph, name, mode)[0] for name in plan.graph.blocks}
            same = self.costs.priced(replace(plan, recompute=tuple(each[call.block] for call in plan.graph.calls)))
            words = mode if same.memory().fits(self.costs.machine.device) else f"{mode} (does not fit)"
            over.append((f"{words} everywhere", same.estimate().step))
        yield Decision("ChooseRecompute", "recompute", counted, tuple(over))


def room_for_activations(line: Line) -> float:
    """Bytes that activations may take, kept and brought back together: the most with which the device is not overfull.

    By bisection, as what activations push aside (gradients that appear only as they are given back) bends the sum.
    Zero where nothing would help.
    """
    device = line.device
    low, high = 0.0, device.usable
    if not line.memory_with(low, 0.0).fits(device):
        return 0.0
    while high - low > EXACT * device.usable:
        middle = (low + high) / 2
        low, high = (middle, high) if line.memory_with(middle, 0.0).fits(device) else (low, middle)
    return low


def choose(
    work: Mapping[str, BlockWork],
    counts: Mapping[str, int],
    allowed: Mapping[str, tuple[str, ...]],
    room: float,
    in_flight: float = 1.0,
) -> dict[tuple[str, str], int] | None:
    """How many calls of each block run in each mode; None when no modes fit `room`.

    What is kept counts `in_flight` times, what is brought back once.
    """
    model = cp_model.CpModel()
    many: dict[tuple[str, str], cp_model.IntVar] = {}
    for block, count in counts.items():
        for mode in allowed[block]:
            many[block, mode] = model.new_int_var(0, count, f"{block} {mode}")
        model.add(sum(many[block, mode] for mode in allowed[block]) == count)
    replayed = model.new_int_var(0, int(UNBOUNDED), "replayed")
    for (block, mode), number in many.items():
        if mode != "none":
            used = model.new_bool_var("")
            model.add(number <= counts[block] * used)
            model.add(replayed >= ceil(work[block].kept["none"]) * used)
    kept = sum(number * ceil(in_flight * work[block].kept[mode]) for (block, mode), number in many.items())
    model.add(kept + replayed <= int(room))
    model.minimize(sum(number * _nanoseconds(work[block], mode) for (block, mode), number in many.items()))
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.max_deterministic_time = 1.0
    if solver.solve(model) not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return None
    return {key: solver.value(number) for key, number in many.items()}


def _modes(graph: Graph, block: str, only: str | int | None) -> tuple[str, ...]:
    """Only blocks with attention recompute: the few others hold little. A pinned mode leaves them no choice."""
    if not any(node.op == "attention" for node in graph.blocks[block].nodes):
        return RECOMPUTE[:1]
    return RECOMPUTE if only is None else (str(only),)


def _nanoseconds(work: BlockWork, mode: str) -> int:
    again = work.replay(mode)
    return round((again.compute + again.communication) * NANOSECOND)


def _take(left: dict[tuple[str, str], int], block: str) -> str:
    """The next mode of a block's calls: those that keep least come first, where activations wait longest."""
    for mode in reversed(RECOMPUTE):
        if left.get((block, mode)):
            left[block, mode] -= 1
            return mode
    raise AssertionError(f"more calls of {block} than modes")
