"""What the placement of a batch is priced by: seconds of a micro-step on a rank, of attention alone and shared.

Made once for a static plan. A micro-step costs a + b tokens, from the same work that prices the plan at two loads;
attention of a document comes from the recorded events of its method, looked up on a grid of lengths.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import exp, log

from fourfold.costmodel.collective import collective_time
from fourfold.costmodel.kernel import attention_time
from fourfold.hardware.topology import Machine
from fourfold.ir.batch_rules import Bounds
from fourfold.ir.graph import Block, Node
from fourfold.ir.mesh import Mesh
from fourfold.ir.plan import SIZES, Plan, Sharing
from fourfold.passes.load import Load, load_of
from fourfold.passes.price import Priced, priced, seconds_of
from fourfold.passes.seconds import Seconds
from fourfold.passes.shared import RATES, Shared
from fourfold.passes.tables import Heads
from fourfold.passes.work import work

SHARING = ("ring", "gather_kv", "ulysses")
"""Methods that a group of any number of ranks may use; the last for no more ranks than there are heads."""

LEAST = 1e-9
"""Seconds that no attention is below: documents of fewer tokens than ranks leave some without work."""

LENGTHS = tuple(2**power for power in range(4, 24))
"""Lengths at which shared attention is looked up; between them time is a power of the length."""


@dataclass(frozen=True, slots=True)
class Layer:
    """Attentions that are alike: heads of a tensor rank, how many calls, how often the forward runs in a micro-step."""

    heads: Heads
    calls: int
    forwards: float


@dataclass(frozen=True)
class Terms:
    """What a static plan and its machine give to whoever places a batch.

    fixed, linear: seconds of a micro-step, and of each token in it, on a rank, attention left out; forward, backward
    and what is computed again. once: seconds of a step outside its micro-steps. node: neighbours in the pool, by how
    many lie in one node. forward: the share of a micro-step that is a first forward. kept: bytes that a token keeps for
    its backward. host: bytes a second to the host's memory. stages: ranks of a line of pipeline stages, of which the
    slowest runs the share `slowest` of a micro-step. hidden: bytes of a token's hidden state.
    """

    machine: Machine
    bounds: Bounds
    tensor: int
    node: int
    fixed: float
    linear: float
    once: float
    layers: tuple[Layer, ...]
    travel: str
    forward: float = 1 / 3
    kept: float = 0.0
    host: float = 0.0
    hidden: float = 0.0
    stages: int = 1
    slowest: float = 1.0
    _known: dict[tuple[str, int, int], float] = field(default_factory=dict, repr=False)
    _best: dict[tuple[int, int], tuple[float, str]] = field(default_factory=dict, repr=False)

    def alone(self, length: int) -> float:
        """Seconds of attention over one document on one rank; launches are in `fixed`."""
        key = ("whole", 1, length)
        if key not in self._known:
            self._known[key] = sum(layer.calls * self._alone(layer, length) for layer in self.layers)
        return self._known[key]

    @cached_property
    def attends(self) -> float:
        """The share of attention that is a first forward, in a document that fills a rank."""
        length = self.bounds.capacity
        first = sum(layer.calls * self._passes(layer, length)[0] for layer in self.layers)
        return first / max(LEAST, self.alone(length))

    def moved(self, tokens: int, nodes: int) -> float:
        """Seconds in which a rank sends so many tokens to others, or takes them, on as many nodes: around each
        attention, in and out, forward and backward."""
        links, known, group = self.machine.group(2, nodes), self.machine.calibration, self.machine.group
        once = collective_time("send_recv", tokens * self.hidden, links, calibration=known, group=group)
        return 2 * once * sum(layer.calls * (1.0 + layer.forwards) for layer in self.layers)

    def exposed(self, share: float, tokens: int, seconds: float) -> float:
        """Seconds by which a micro-step of `seconds` waits for a share of what it keeps to go to the host, and back."""
        if not share:
            return 0.0
        copying, first = share * tokens * self.kept / self.host, self.forward * seconds
        return max(0.0, copying - first) + max(0.0, copying - (seconds - first))

    def shared(self, length: int, ranks: int, method: str) -> float:
        """Seconds of attention over one document that `ranks` neighbours share, among others that fill them."""
        if ranks == 1:
            return self.alone(length)
        at = min(max(1, bisect_left(LENGTHS, length)), len(LENGTHS) - 1)
        low, high = LENGTHS[at - 1], LENGTHS[at]
        first, second = self._looked_up(method, ranks, low), self._looked_up(method, ranks, high)
        share = log(length / low) / log(high / low)
        return exp(log(first) + share * (log(second) - log(first)))

    def fastest(self, length: int, ranks: int) -> tuple[float, str]:
        """Seconds of attention over one document on `ranks` neighbours, and the method that takes the least."""
        if (length, ranks) not in self._best:
            self._best[length, ranks] = self._fastest(length, ranks)
        return self._best[length, ranks]

    def _fastest(self, length: int, ranks: int) -> tuple[float, str]:
        if ranks == 1:
            return self.alone(length), "whole"
        methods = SHARING if ranks <= self.bounds.heads else SHARING[:-1]
        return min((self.shared(length, ranks, method), method) for method in methods)

    def task(self, length: int, ranks: int) -> float:
        """Seconds that one sequence takes each of `ranks` neighbours, micro-steps not counted."""
        return self.linear * length / ranks + self.fastest(length, ranks)[0]

    def _looked_up(self, method: str, ranks: int, length: int) -> float:
        key = (method, ranks, length)
        if key not in self._known:
            found = sum(layer.calls * self._shared(layer, *key) for layer in self.layers)
            self._known[key] = max(found, LEAST)
        return self._known[key]

    def _shared(self, layer: Layer, method: str, ranks: int, length: int) -> float:
        sharing = Sharing("ulysses", "contiguous", ranks) if method == "ulysses" else Sharing(method, "zigzag")
        group = Shared(self.machine, Mesh(tp=self.tensor, sp=ranks), replace(sharing, travel=self.travel))
        many = max(1, ranks * self.bounds.capacity // length)
        forward, backward = (
            group.seconds(layer.heads, length=length, tokens=float(many * length), backward=b) for b in (False, True)
        )
        return (layer.forwards * forward + backward) / many

    def _alone(self, layer: Layer, length: int) -> float:
        forward, backward = self._passes(layer, length)
        return layer.forwards * forward + backward

    def _passes(self, layer: Layer, length: int) -> tuple[float, float]:
        """Seconds of one forward and one backward over a document on one rank, launches left out."""
        heads, device = layer.heads, self.machine.device
        pairs = length * (length + 1) / 2 if heads.causal else float(length) * length
        flops, dtype = 4.0 * heads.heads * heads.width * pairs, RATES[heads.dtype]
        forward, backward = (
            attention_time(flops, length, backward=b, dtype=dtype, device=device, head_dim=heads.width)
            for b in (False, True)
        )
        return forward - device.attention_forward.overhead, backward - device.attention_backward.overhead


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

    @property
    def hidden(self) -> float:
        """Bytes of a token's hidden state: what goes from layer to layer."""
        widths = [
            value.shape[-1] * SIZES[value.dtype]
            for block in self.plan.graph.blocks.values()
            if any(node.op == "attention" for node in block.nodes)
            for value in block.inputs.values()
            if value.grad
        ]
        return float(max(widths, default=0))

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
    heads = min(layer.heads.heads for layer in layers)
    paths = [sum(whole.calls[i].path for i in line.calls) for line in whole.lines]
    return Terms(
        machine=machine,
        bounds=Bounds(plan.mesh.pool, plan.capacity, plan.zero, heads, rank.state / rank.kept, spare),
        tensor=plan.mesh.tp,
        node=sum(one < machine.node_size for one in plan.mesh.group("pool")),
        fixed=max(0.0, first - linear * few),
        linear=linear,
        once=whole.optimizer + whole.talk + max(0.0, whole.step.exposed - _crossing(whole)),
        layers=layers,
        travel=plan.sharing.travel,
        forward=forward / second,
        kept=rank.kept,
        host=host,
        hidden=rank.hidden,
        stages=plan.mesh.pp,
        slowest=max(paths) / sum(paths),
    )


def _crossing(whole: Priced) -> float:
    """Seconds of a step that its `exposed` counts though they are on the tensor axis: those of one stage's do."""
    if whole.plan.mesh.pp > 1:
        return 0.0
    each = (c.tensor.forward + c.tensor.backward + c.replay.communication for c in whole.calls)
    return whole.plan.micro_steps * sum(each)
