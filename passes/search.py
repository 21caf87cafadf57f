"""Prices every mesh, ZeRO stage and number of micro-steps that could win, and keeps the best few."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch

from fourfold.costmodel.memory import GIB
from fourfold.hardware.errors import UsageError
from fourfold.hardware.topology import Machine
from fourfold.ir.answer import Answer, Candidate, Estimate, Refusal
from fourfold.ir.graph import Graph
from fourfold.ir.mesh import Mesh
from fourfold.ir.ops import op_of, rules
from fourfold.ir.plan import RECOMPUTE, Decision, Layout, Plan
from fourfold.ir.rule import WHOLE
from fourfold.passes.cuts import CutTensors, Prices
from fourfold.passes.meshes import PINS, meshes
from fourfold.passes.price import Priced, rounded, seconds_of
from fourfold.passes.recompute import ChooseRecompute
from fourfold.passes.work import BlockWork, work

MICRO_STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096)


@dataclass(frozen=True)
class Search:
    """Decides mesh, ZeRO stage, micro-steps, recompute and cuts.

    Given: a plan that names graph, machine, workload, precision, optimizer and pins. Minimises: seconds of one step.
    Subject to: the upper memory band within the device; every sequence within a micro-step; the pins.
    """

    machine: Machine
    top: int = 3
    found: list[Candidate] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    layouts: dict[int, dict[str, Layout]] = field(default_factory=dict)
    works: dict[tuple[int, int], dict[str, BlockWork]] = field(default_factory=dict)

    def __call__(self, plan: Plan) -> Answer | None:
        """The answer, or None when nothing fits: then `refused` says why."""
        started = time.process_time()
        for mesh in meshes(self.machine.ranks, plan.pins):
            self._mesh(plan, mesh)
        if not self.found:
            return None
        ranked = sorted(self.found, key=lambda c: c.estimate.step)
        best, others = ranked[0], _distinct(ranked)[1 : self.top + 1]
        chosen = replace(best.plan, log=(*best.plan.log, *_decisions(best, _distinct(ranked))))
        return Answer(chosen, best.estimate, tuple(others), tuple(self.refused), solving=time.process_time() - started)

    def _mesh(self, plan: Plan, mesh: Mesh) -> None:
        """All settings of one mesh; a refusal if none fits."""
        before, shortfalls = len(self.found), []
        for settings in _settings(replace(plan, mesh=mesh)):
            candidate, short = self._candidate(settings)
            if candidate is not None:
                self.found.append(candidate)
            else:
                shortfalls.append((short, settings))
        if len(self.found) == before and shortfalls:
            short, closest = min(shortfalls, key=lambda pair: pair[0])
            reason = f"{short / GIB:.1f} GiB short at best: ZeRO {closest.zero}, {closest.micro_steps} micro-steps, full recompute"
            self.refused.append(Refusal(str(mesh), reason))

    def _candidate(self, plan: Plan) -> tuple[Candidate | None, float]:
        """The plan with cuts and recompute, priced; or the bytes it lacks."""
        plan = replace(plan, layouts=self._layouts(plan))
        blocks = self._work(plan)
        modes, short = recompute_within(Priced(plan, self.machine, blocks))
        if modes is None:
            return None, short
        plan = replace(plan, recompute=modes)
        return Candidate(plan, Priced(plan, self.machine, blocks).estimate()), 0.0

    def _layouts(self, plan: Plan) -> dict[str, Layout]:
        """The cuts for one tensor degree, solved once, at the load first met."""
        tp = plan.mesh.tp
        if tp not in self.layouts:
            seconds = seconds_of(plan, self.machine)

            def op(node, rule, cut, block):  # type: ignore[no-untyped-def]
                times = seconds.op(node, rule, cut, block)
                return times.forward + times.backward

            prices = Prices(op, seconds.move, seconds.load.tokens)
            self.layouts[tp], _ = CutTensors(tp, prices, pinned_cuts(plan))(plan.graph)
        return self.layouts[tp]

    def _work(self, plan: Plan) -> dict[str, BlockWork]:
        seconds = seconds_of(plan, self.machine)
        key = plan.mesh.tp, seconds.load.tokens
        if key not in self.works:
            self.works[key] = work(plan.graph, plan.layouts, seconds)
        return self.works[key]


def recompute_within(priced: Priced) -> tuple[tuple[str, ...] | None, float]:
    """The cheapest recompute modes that fit the device, or None and the bytes that even full recompute lacks."""
    plan, device = priced.plan, priced.machine.device
    only = plan.pins.get("recompute")
    room, short = float(2**60), 0.0
    for _ in range(6):
        modes = ChooseRecompute(priced.work, room, None if only is None else str(only))(plan.graph)
        if modes is None:
            return None, short
        memory = Priced(replace(plan, recompute=modes), priced.machine, priced.work).memory()
        short = memory.shortfall(device)
        if short <= 0:
            return modes, 0.0
        kept = sum(priced.work[c.block].kept[m] for c, m in zip(plan.graph.calls, modes, strict=True))
        replayed = max((priced.work[c.block].kept["none"] for c, m in zip(plan.graph.calls, modes, strict=True) if m != "none"), default=0.0)
        room = kept + replayed - short
        if room <= 0:
            return None, short
    return None, short


def _settings(plan: Plan) -> Iterator[Plan]:
    """ZeRO stages and micro-step counts of one mesh, smallest micro-steps first."""
    pool, pins, workload = plan.mesh.pool, plan.pins, plan.workload
    stages = (0,) if pool == 1 else (1, 2, 3, 0)
    for zero in stages:
        if int(pins.get("zero", zero)) != zero:
            continue
        seen = set()
        for count in reversed(MICRO_STEPS):
            capacity = _capacity(plan, count)
            steps = max(1, -(-workload.tokens // (pool * capacity)))
            if "micro_steps" in pins and count != int(pins["micro_steps"]):
                continue
            if "capacity" in pins:
                capacity = rounded(int(pins["capacity"]), plan.bucket)
                steps = max(1, -(-workload.tokens // (pool * capacity)))
            if (capacity, steps) not in seen and not (zero == 2 and steps == 1):
                seen.add((capacity, steps))
                yield replace(plan, zero=zero, capacity=capacity, micro_steps=steps)


def _capacity(plan: Plan, micro_steps: int) -> int:
    """Tokens a rank's micro-step must hold so that `micro_steps` of them hold the workload, whole sequences each."""
    workload, bins = plan.workload, plan.mesh.pool * micro_steps
    if len(workload.lengths) == 1:
        tokens = -(-workload.sequences // bins) * workload.longest
    else:
        tokens = max(workload.longest, int(1.05 * workload.tokens / bins))
    return rounded(tokens, plan.bucket)


def pinned_cuts(plan: Plan) -> dict[tuple[str, str], str]:
    """Pins by module glob as (block, node) -> label. Raises UsageError when a glob matches nothing."""
    found: dict[tuple[str, str], str] = {}
    for pattern, label in plan.pins.items():
        if pattern in PINS:
            continue
        matched = [key for key in _cuttable(plan.graph) if fnmatch(".".join(key), pattern) or fnmatch(f"{key[0]}.{key[1]}", f"*{pattern}")]
        if not matched:
            names = ", ".join(".".join(key) for key in list(_cuttable(plan.graph))[:8])
            raise UsageError(f"pin {pattern!r} matches no op; pin one of {', '.join(PINS)} or a module such as {names}")
        found.update(dict.fromkeys(matched, str(label)))
    return found


def _cuttable(graph: Graph) -> Iterator[tuple[str, str]]:
    for block in graph.blocks.values():
        for node in block.nodes:
            if op_of(node).kind in ("matmul", "attention", "gather", "loss", "norm"):
                yield block.name, node.name


def check_tensor_pin(graph: Graph, tp: int) -> None:
    """Raises the error of a pinned degree that cannot cut the heads."""
    for block in graph.blocks.values():
        for node in block.nodes:
            if node.op == "attention" and all(rule.cuts(tp) == (WHOLE,) for rule in rules(node, block.values())):
                heads = block.value(node.refs()[0]).shape[1]
                legal = [str(k) for k in range(1, heads + 1) if heads % k == 0]
                where = ".".join(part for part in (block.name, node.module) if part)
                raise UsageError(f"tp={tp} cannot cut label h of {where}: {heads} heads; tp may be {', '.join(legal[:-1])} or {legal[-1]}")


def uncut(graph: Graph, layouts: Mapping[str, Layout], tp: int) -> tuple[str, ...]:
    """Ops with weights or heads that the tensor axis could not cut: computed whole on each of its ranks."""
    if tp == 1:
        return ()
    found = []
    for block in graph.blocks.values():
        cuts = layouts[block.name].cuts
        found += [f"{block.name}.{n.name}" for n in block.nodes if op_of(n).kind in ("matmul", "attention", "loss") and n.name not in cuts]
    return tuple(found)


def _distinct(ranked: list[Candidate]) -> list[Candidate]:
    """The best candidate of each (mesh, ZeRO stage)."""
    seen: dict[tuple[str, int], Candidate] = {}
    for candidate in ranked:
        seen.setdefault((str(candidate.plan.mesh), candidate.plan.zero), candidate)
    return list(seen.values())


def _decisions(best: Candidate, ranked: list[Candidate]) -> Iterator[Decision]:
    """What was chosen over what, for `why`."""
    plan = best.plan
    by_mesh: dict[str, Estimate] = {}
    for candidate in ranked:
        by_mesh.setdefault(str(candidate.plan.mesh), candidate.estimate)
    yield Decision("Search", "mesh", str(plan.mesh), tuple((name, e.step) for name, e in by_mesh.items()))
    stages = tuple((f"ZeRO {c.plan.zero}", c.estimate.step) for c in ranked if c.plan.mesh == plan.mesh)
    yield Decision("Search", "ZeRO stage", f"ZeRO {plan.zero}", stages)
    yield Decision("Search", "micro-steps", f"{plan.micro_steps} of at most {plan.capacity} tokens a rank")
    counted = ", ".join(f"{plan.recompute.count(mode)} calls {mode}" for mode in RECOMPUTE if mode in plan.recompute)
    yield Decision("ChooseRecompute", "recompute", counted)
    for name in uncut(plan.graph, plan.layouts, plan.mesh.tp):
        yield Decision("CutTensors", name, f"whole: tp={plan.mesh.tp} divides none of its labels, or cutting it costs more")
