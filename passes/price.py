"""The price of a plan: the only place where graph, layout, machine and cost model meet in an Estimate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import ceil, prod

from fourfold.costmodel.collective import Op, collective_time
from fourfold.costmodel.kernel import chore_time, idle_time, peak_rate, stream_time
from fourfold.costmodel.memory import (
    SLACK_HIGH,
    Band,
    Memory,
    activation_memory,
    communicator_memory,
    library_workspace,
    logits_memory,
    peak,
)
from fourfold.costmodel.state import Held, State, Widths, backward_memory, state_memory, update_memory
from fourfold.hardware.machine import Crossing, Overlap
from fourfold.hardware.topology import Machine
from fourfold.ir.answer import Estimate
from fourfold.ir.graph import Block, Graph, Node
from fourfold.ir.ops import op_of, rule_for
from fourfold.ir.plan import RECOMPUTE, SIZES, Layout, Plan
from fourfold.ir.rule import WHOLE
from fourfold.passes.held import held
from fourfold.passes.laid import LaidGraph
from fourfold.passes.load import load_of
from fourfold.passes.seconds import RATES, Seconds, Times
from fourfold.passes.steps import CallCost, StepTime, floor, step_time
from fourfold.passes.work import ELEMENTWISE, KINDS, BlockWork, work

CHUNK = 2048
"""Tokens whose logits the fused loss holds at once (backends/engine.py)."""

EXCHANGES = 3
"""What all ranks tell each other in a step: a digest of the batch, the loss, the norm of the gradients."""

CLIPPED = 12.0
"""Bytes a parameter that gradient clipping moves: one read for the norm, one read and write to scale."""


@dataclass(frozen=True, slots=True)
class Head:
    """The product that makes logits: rows of the vocabulary on one tensor rank, width, bytes of an element."""

    vocabulary: int
    width: int
    size: int


@dataclass(frozen=True)
class Priced:
    """One plan with everything its price is made of; each part is worked out once."""

    plan: Plan
    machine: Machine
    laid: LaidGraph
    work: Mapping[str, BlockWork]

    @cached_property
    def modes(self) -> tuple[str, ...]:
        """The recompute mode of every call."""
        return self.plan.recompute or (RECOMPUTE[0],) * len(self.plan.graph.calls)

    @cached_property
    def pool(self) -> Crossing:
        """What the pool of the first rank crosses."""
        return self.machine.crossing(self.plan.mesh.group("pool"))

    @property
    def overlap(self) -> Overlap:
        """How compute and collectives slow each other."""
        return self.machine.calibration.overlap if self.machine.calibration else Overlap()

    @cached_property
    def calls(self) -> tuple[CallCost, ...]:
        """The cost of every call in order."""
        found = {
            (block, mode): self._call(block, mode)
            for block, mode in dict.fromkeys(zip(self._blocks(), self.modes, strict=True))
        }
        return tuple(found[key] for key in zip(self._blocks(), self.modes, strict=True))

    @cached_property
    def optimizer(self) -> float:
        """Seconds of clipping and of the update of this rank's shard: each number read and written once."""
        width, state = SIZES[self.plan.precision.parameter], self.plan.optimizer.state
        size = self.held.trainable_shard * (3.0 * width + 2.0 * state + CLIPPED)
        device, tensors = self.machine.device, sum(value.grad for _, value in self.plan.graph.parameters())
        if "update" in device.chores:
            return tensors * chore_time("update", device, size / max(1, tensors))
        return stream_time(size, device) if size else 0.0

    @cached_property
    def talk(self) -> float:
        """Seconds in which every rank reads the batch and tells the others a few numbers, where that is waited for."""
        read = self.plan.workload.sequences * chore_time("read", self.machine.device)
        if not self.blocking:
            return read
        everyone = self.machine.crossing(tuple(range(self.plan.mesh.ranks)))
        known, group = self.machine.calibration, self.machine.group
        return read + EXCHANGES * collective_time("all_reduce", 8.0, everyone, calibration=known, group=group)

    @property
    def blocking(self) -> bool:
        """Whether a collective holds up the program that starts it."""
        return self.machine.device.collectives == "gloo"

    @cached_property
    def floor(self) -> float:
        """Seconds that the step cannot go below, whatever overlaps: cheap, and what the search prunes by."""
        steps = self.plan.micro_steps
        seconds = floor(self.calls, micro_steps=steps, optimizer=self.optimizer + self.talk)
        return seconds if self.plan.recompute else seconds + steps * self._least_replay()

    def _least_replay(self) -> float:
        """Seconds a micro-step that some recompute must take where nothing recomputed does not fit.

        Each byte too many is given back by the mode that gives back most for its time; the allocator's slack goes
        with it.
        """
        short = self.memory().shortfall(self.machine.device) / (1.0 + SLACK_HIGH)
        if short <= 0:
            return 0.0
        rates = []
        for block in self.work.values():
            for mode in RECOMPUTE[1:]:
                freed, again = block.kept["none"] - block.kept[mode], block.replay(mode)
                rates += [(again.compute + again.communication) / freed] if freed > 0 else []
        return short * min(rates, default=0.0)

    @cached_property
    def held(self) -> Held:
        """Parameter elements of one rank by unit."""
        return held(self.plan, self.laid)

    @cached_property
    def kept(self) -> tuple[float, float]:
        """Bytes of activations one micro-step keeps, and those that the largest recomputed block brings back."""
        counted = Counter(zip(self._blocks(), self.modes, strict=True))
        saved = sum(count * self.work[block].kept[mode] for (block, mode), count in counted.items())
        again = (self.work[block].kept["none"] for block, mode in counted if mode != "none")
        return saved, max(again, default=0.0)

    def memory(self) -> Memory:
        """The fullest moment of a step on one rank."""
        return self.memory_with(*self.kept)

    def memory_with(self, saved: float, replayed: float) -> Memory:
        """The same if activations took these bytes."""
        head, device = self.head, self.machine.device
        working = max(block.kept["none"] for block in self.work.values())
        # The loss makes the gradient of its weight in forward, in float32.
        gradient = 4.0 * head.vocabulary * head.width
        backward = backward_memory(
            self._state,
            activations=activation_memory(saved=saved + gradient, replayed=replayed, working=working),
            logits=logits_memory(chunk=CHUNK, vocabulary=head.vocabulary, width=head.size),
            workspace=library_workspace(device) + Band(0.0, max(block.scratch for block in self.work.values())),
            communicators=self._communicators,
        )
        return peak(backward, update_memory(self._state, communicators=self._communicators))

    @cached_property
    def head(self) -> Head:
        """The model's last product, as this rank holds it."""
        name, block, node = next((n, b, node) for n, b, node in _nodes(self.plan.graph) if node.op == "loss")
        values = block.values()
        width = values[node.refs()[0]].shape[-1]
        weight = values[node.refs()[1]]
        cut = self.plan.layouts.get(name, Layout()).cuts.get(node.name, WHOLE)
        share = self.plan.mesh.tp if cut in rule_for(node, values, cut).reduced else 1
        return Head(prod(weight.shape) // width // share, width, SIZES[weight.dtype])

    def estimate(self) -> Estimate:
        """Time, memory and MFU of one step."""
        plan, device = self.plan, self.machine.device
        step = step_time(
            self.calls,
            zero=plan.zero,
            micro_steps=plan.micro_steps,
            optimizer=self.optimizer + self.talk,
            overlap=self.overlap,
            blocking=self.blocking,
        )
        flops = model_flops(plan.graph, plan.workload.tokens, plan.workload.pairs)
        peak_flops = peak_rate(RATES[plan.precision.compute], device) * plan.mesh.ranks
        return Estimate(
            step=step.seconds,
            parts=tuple((name, seconds) for name, seconds in self._parts(step) if seconds > 0),
            memory={name: (band.low, band.high) for name, band in self.memory().parts() if band.high > 0},
            limit=device.usable - device.reserve,
            flops=flops,
            mfu=flops / step.seconds / peak_flops,
            tokens=plan.workload.tokens,
            ranks=plan.mesh.ranks,
        )

    def _parts(self, step: StepTime) -> Iterator[tuple[str, float]]:
        """Where the step's time goes: they sum to it. What is exposed beside the tensor axis is the pool's."""
        times = self.plan.micro_steps
        around = [self._around(block) for block in self._blocks()]
        idle = self.talk + times * sum(each.forward + each.backward for each in around)
        computed = self.optimizer + idle
        for kind in (*KINDS.values(), ELEMENTWISE):
            done = [self.work[block].compute[kind] for block in self._blocks()]
            seconds = times * sum(t.forward + t.backward for t in done)
            computed += seconds
            yield kind, seconds
        replayed = times * sum(call.replay.compute for call in self.calls)
        tensor = [call.tensor.forward + call.tensor.backward + call.replay.communication for call in self.calls]
        crossing = times * sum(tensor)
        yield "recompute", replayed
        yield "tensor communication", crossing
        yield "data communication", step.exposed - crossing
        yield "optimizer", self.optimizer
        yield "program", idle
        yield "slowed by overlap", step.computing - computed - replayed

    def _blocks(self) -> Iterator[str]:
        return (call.block for call in self.plan.graph.calls)

    def _call(self, name: str, mode: str) -> CallCost:
        precision, zero = self.plan.precision, self.plan.zero
        laid, block = self.laid.blocks[name], self.work[name]
        gathered, reduced = laid.held * SIZES[precision.compute], laid.trained * SIZES[precision.reduce]
        gather = self._collective("all_gather", gathered) if zero and gathered else 0.0
        reduce = self._collective("reduce_scatter" if zero else "all_reduce", reduced) if reduced else 0.0
        device = self.machine.device
        if gathered:
            gather += chore_time("gather", device, gathered) - idle_time("gather", device)
        if reduced:
            reduce += chore_time("reduce", device, reduced) - idle_time("reduce", device)
        return CallCost(block.total + self._around(name), block.tensor, block.replay(mode), gather, reduce)

    def _around(self, name: str) -> Times:
        """What the program does around each call of a block, whether or not anything is gathered or reduced."""
        device, cut = self.machine.device, self.plan.mesh.tp > 1
        local = len(self.plan.graph.blocks[name].parameters) * chore_time("local", device) / 2 if cut else 0.0
        return Times(idle_time("gather", device) + local, idle_time("reduce", device) + local)

    def _collective(self, op: Op, size: float) -> float:
        """One collective over the pool."""
        calibration = self.machine.calibration
        return collective_time(op, size, self.pool, calibration=calibration, group=self.machine.group)

    @cached_property
    def _state(self) -> State:
        plan, p = self.plan, self.plan.precision
        widths = Widths(SIZES[p.parameter], SIZES[p.compute], SIZES[p.reduce], ceil(plan.optimizer.state))
        return state_memory(self.held, widths, zero=plan.zero, pool=plan.mesh.pool, micro_steps=plan.micro_steps)

    @cached_property
    def _communicators(self) -> Band:
        mesh = self.plan.mesh
        return communicator_memory((mesh.pool > 1) + (mesh.tp > 1), self.machine.device)


def seconds_of(plan: Plan, machine: Machine) -> Seconds:
    """The prices of ops under a plan's tensor axis and load."""
    return Seconds(plan.graph, machine, machine.crossing(plan.mesh.group("tp")), load_of(plan))


def priced(plan: Plan, machine: Machine) -> Priced:
    """A plan with the parts of its price."""
    seconds = seconds_of(plan, machine)
    laid = LaidGraph(plan.graph, plan.layouts, plan.mesh.tp)
    return Priced(plan, machine, laid, {name: work(one, seconds) for name, one in laid.blocks.items()})


def price(plan: Plan) -> Estimate:
    """The Estimate of a plan from its own profile snapshot: no model, no profile file is read."""
    return priced(plan, Machine.from_snapshot(plan.machine)).estimate()


def model_flops(graph: Graph, tokens: int, pairs: float) -> float:
    """Model FLOPs of one optimizer step: forward once, backward twice; causal attention by its pairs, half a square."""
    total = 0.0
    for name, block, node in _nodes(graph):
        kind, count, values = op_of(node).kind, graph.counts[name], block.values()
        if kind == "matmul":
            total += count * 6.0 * rule_for(node, values, WHOLE).points(tokens)
        if kind == "loss":
            total += count * 6.0 * prod(values[node.refs()[1]].shape) * tokens
        if kind == "attention":
            _, heads, _, width = values[node.refs()[0]].shape
            total += count * 12.0 * heads * width * pairs * (1 if dict(node.kwargs)["causal"] else 2)
    return total


def _nodes(graph: Graph) -> Iterator[tuple[str, Block, Node]]:
    return ((name, block, node) for name, block in graph.blocks.items() for node in block.nodes)
