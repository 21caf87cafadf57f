"""The terms of a static plan, from the same work that prices it, at two loads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from fourfold.hardware.topology import Machine
from fourfold.ir.batch_rules import Bounds
from fourfold.ir.graph import Block, Node
from fourfold.ir.plan import SIZES, Plan
from fourfold.passes.batch.timing.terms import Layer, Terms
from fourfold.passes.price.load import Load, load_of
from fourfold.passes.price.price import Priced, priced, seconds_of
from fourfold.passes.price.seconds import Seconds
from fourfold.passes.price.work import work
from fourfold.passes.sequence.tables import Heads

LAUNCHED = 5.3e-3
"""Seconds in which the host launches one layer, forward and backward: a micro-step on a GPU takes no less. Source: 12
layers of chunkflow's 38 micro-steps in benchmarks/results/varlen-h200x2/rows-megatron.jsonl; 4.9e-3 and 7.7e-3 in two
other runs (-second, -third)."""
LEFT = 2.3
"""Times as long where what the layer keeps goes to the host's memory. Source: `auto`, of 6 micro-steps, in
rows-megatron-wide.jsonl beside it."""


@dataclass(frozen=True)
class Rank:
    """One rank of a static plan as its micro-steps see it."""

    plan: Plan
    priced: Priced

    def micro_step(self, tokens: int) -> tuple[float, float]:
        """Seconds of all calls for so many tokens, and of a first forward: of attention its launches only."""
        load = Load(tokens, 0.0, 1.0, tokens)
        seconds = replace(self.seconds, load=load, shared=None)
        found = {name: work(laid, seconds) for name, laid in self.priced.laid.blocks.items()}
        priced = replace(self.priced, work=found, known={})
        calls = priced.calls
        return sum(c.path for c in calls), sum(c.compute.forward + c.tensor.forward for c in calls)

    @property
    def kept(self) -> float:
        """Bytes that a token keeps for its backward, on the rank that keeps most."""
        line = self.priced.fullest
        return line.kept[0] / line.in_flight / load_of(self.plan).fullest

    @property
    def state(self) -> float:
        """Bytes of a token's keys and values, and of the sums of their gradients in float32, on that rank."""
        total = 0.0
        for call in self.priced.fullest.calls:
            block = self.plan.graph.blocks[self.plan.graph.calls[call].block]
            each = [self._heads(node, block) for node in block.nodes if node.op == "attention"]
            total += sum(2.0 * one.kv_heads * one.width * (SIZES[one.dtype] + 4.0) for one in each)
        return total

    @property
    def spare(self) -> float:
        """The share that may wait in the host's memory: of all layers but two. Source: ByteScale, equation 3."""
        graph = self.plan.graph
        blocks = [graph.blocks[graph.calls[call].block] for call in self.priced.fullest.calls]
        layers = sum(any(node.op == "attention" for node in block.nodes) for block in blocks)
        return max(0.0, (layers - 2) / max(1, layers))

    @cached_property
    def seconds(self) -> Seconds:
        """Prices of its ops."""
        return seconds_of(replace(self.plan, mesh=replace(self.plan.mesh, sp=1)), self.priced.machine)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Its attentions, alike ones together."""
        found: dict[tuple[Heads, float], int] = {}
        for call, mode in zip(self.plan.graph.calls, self.priced.modes, strict=True):
            block = self.plan.graph.blocks[call.block]
            for node in block.nodes:
                if node.op == "attention":
                    key = self._heads(node, block), 2.0 if mode == "full" else 1.0
                    found[key] = found.get(key, 0) + 1
        return tuple(Layer(heads, calls, forwards) for (heads, forwards), calls in found.items())

    def _heads(self, node: Node, block: Block) -> Heads:
        return self.seconds.heads(node, self.plan.mesh.tp, block)


def terms_of(plan: Plan, machine: Machine | None = None) -> Terms:
    """The terms of a static plan; its own machine unless another is given. What is waited for on the tensor axis is
    part of a micro-step, what is waited for on the pool of the step."""
    machine = machine or Machine.from_snapshot(plan.machine)
    whole = priced(plan, machine)
    rank = Rank(plan, whole)
    few, many = plan.bucket, max(2 * plan.bucket, plan.capacity)
    (first, _), (second, forward) = rank.micro_step(few), rank.micro_step(many)
    linear = max(0.0, (second - first) / (many - few))
    layers, host = rank.layers, min(group.node.host_link or 0.0 for group in machine.groups)
    spare = rank.spare if host else 0.0
    launched = 0.0 if machine.device.vendor == "cpu" else LAUNCHED * sum(layer.calls for layer in layers)
    heads = min(layer.heads.heads for layer in layers)
    paths = [sum(whole.calls[i].path for i in line.calls) for line in whole.lines]
    return Terms(
        machine=machine,
        bounds=Bounds(plan.mesh.pool, plan.capacity, plan.zero, heads, rank.state / rank.kept, spare),
        tensor=plan.mesh.tp,
        node=sum(one < machine.node_size for one in plan.mesh.group("pool")),
        fixed=max(0.0, first - linear * few, launched - linear * plan.capacity),
        linear=linear,
        once=whole.optimizer + whole.talk + max(0.0, whole.step.exposed - _crossing(whole)),
        layers=layers,
        travel=plan.sharing.travel,
        forward=forward / second,
        kept=rank.kept,
        host=host,
        launch=launched * LEFT,
        stages=plan.mesh.pp,
        slowest=max(paths) / sum(paths),
    )


def _crossing(whole: Priced) -> float:
    """Seconds of a step that its `exposed` counts though they are on the tensor axis: those of one stage's do."""
    if whole.plan.mesh.pp > 1:
        return 0.0
    each = (c.tensor.forward + c.tensor.backward + c.replay.communication for c in whole.calls)
    return whole.plan.micro_steps * sum(each)
