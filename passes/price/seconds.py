"""Seconds of one op in one cut, and of one collective on an axis: where rules meet the cost model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import gcd, prod

from fourfold.costmodel.collective import collective_time
from fourfold.costmodel.kernel import attention_flops, attention_time, matmul_time, stream_time
from fourfold.hardware.machine import Crossing, Device
from fourfold.hardware.topology import Machine
from fourfold.ir.graph import TOKENS, Block, Graph, Node, Tensor
from fourfold.ir.ops import op_of
from fourfold.ir.plan import SIZES
from fourfold.ir.rule import PARTIAL, WHOLE, Rule
from fourfold.ir.workload import visible
from fourfold.passes.price.eager import Eager, again
from fourfold.passes.price.flops import sight
from fourfold.passes.price.load import Load
from fourfold.passes.sequence.shared import RATES, Shared
from fourfold.passes.sequence.tables import Heads

FUSIBLE = ("pointwise", "norm", "free")

CHUNK = 2048
"""Tokens whose logits the fused loss holds at once (backends/stage/engine.py)."""


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds forward and backward."""

    forward: float = 0.0
    backward: float = 0.0

    def __add__(self, other: Times) -> Times:
        return Times(self.forward + other.forward, self.backward + other.backward)


@dataclass(frozen=True)
class Seconds:
    """Prices ops of one model on one machine: `tensor` is what the tensor axis crosses, `load` a micro-step."""

    graph: Graph
    machine: Machine
    tensor: Crossing
    load: Load
    shared: Shared | None = None

    @property
    def device(self) -> Device:
        """The device every rank has."""
        return self.machine.device

    @cached_property
    def moved(self) -> Mapping[str, Mapping[str, float]]:
        """Bytes each elementwise node moves, by block."""
        return {name: traffic(block, self) for name, block in self.graph.blocks.items()}

    @cached_property
    def values(self) -> Mapping[str, Mapping[str, Tensor]]:
        """All values by block and name."""
        return {name: block.values() for name, block in self.graph.blocks.items()}

    @cached_property
    def fused(self) -> bool:
        """Whether elementwise chains run as one kernel: compiled on a GPU, op by op on a CPU."""
        return self.device.vendor != "cpu"

    @cached_property
    def moves(self) -> dict[tuple[str, float], float]:
        """Collectives priced so far: a search asks for few sizes, each thousands of times."""
        return {}

    def move(self, op: str, size: float) -> float:
        """One collective on the tensor axis over `size` bytes (conventions of collective_time)."""
        found = self.moves.get((op, size))
        if found is None:
            machine = self.machine
            links = {"calibration": machine.calibration, "group": machine.group}
            found = self.moves[op, size] = collective_time(op, size, self.tensor, **links)  # type: ignore[arg-type]
        return found

    @cached_property
    def eager(self) -> Eager:
        """Prices of kernels that run one by one."""
        return Eager(self.device, self.size)

    @cached_property
    def again(self) -> Mapping[str, Mapping[str, tuple[str, ...]]]:
        """The values that each node is not the first to read, by block."""
        return {name: again(block) for name, block in self.graph.blocks.items()}

    def copied(self, value: Tensor, ranks: int) -> float:
        """One of `ranks` parts of a value copied on its rank, where that is a kernel of its own."""
        return 0.0 if self.fused else self.eager.copied(self.size(value) / ranks)

    def op(self, node: Node, rule: Rule, cut: str, block: Block) -> Times:
        """One op on one rank; `cut` divides its work by the axis."""
        share = 1 if cut in (WHOLE, PARTIAL) else self.tensor.size
        own = self._op(node, rule, share, block)
        if self.fused:
            return own
        values = self.values[block.name]
        added = (self.size(values[name]) / share for name in self.again[block.name][node.name])
        return own + Times(0.0, self.eager.added(added))

    def _op(self, node: Node, rule: Rule, share: int, block: Block) -> Times:
        kind = op_of(node).kind
        if kind == "matmul":
            return self._matmul(node, rule, share, block)
        if kind == "attention":
            return self.attention(node, share, block)
        if kind == "loss":
            return self._loss(node, rule, share, block)
        if kind == "gather":
            return self._gather(node, share, block)
        if not self.fused:
            values = self.values[block.name]
            backward = self.eager.backward(node, values, share) if node.value.grad else 0.0
            return Times(self.eager.forward(node, values, share), backward)
        moved = self.moved[block.name].get(node.name, 0.0) / share
        return Times(self._stream(moved), self._stream(2.0 * moved if node.value.grad else 0.0))

    def size(self, value: Tensor) -> float:
        """Bytes of a whole value for this micro-step."""
        return float(SIZES[value.dtype] * prod(self.load.tokens if d == TOKENS else d for d in value.shape))

    def _stream(self, moved: float) -> float:
        return stream_time(moved, self.device) if moved else 0.0

    def _matmul(self, node: Node, rule: Rule, share: int, block: Block) -> Times:
        values = [self.values[block.name][r] for r in node.refs()]
        flops = 2.0 * rule.points(self.load.tokens) / share
        moved = (sum(self.size(v) for v in values) + self.size(node.value)) / share
        one = matmul_time(flops, moved, RATES[node.value.dtype], self.device)
        # Run by itself, a product of three dimensions is one of two between views.
        views = 0.0 if self.fused else 3 * self.device.launch
        return Times(one + views, (one + views) * sum(v.grad for v in values))

    def attention(self, node: Node, share: int, block: Block) -> Times:
        """One attention on one rank, its heads over `share` tensor ranks."""
        _, heads, _, width = self.values[block.name][node.refs()[0]].shape
        seen, length = sight(node), self.load.length
        part = visible(length, **seen) / visible(length, causal=True)
        flops = attention_flops(1, width, part * self.load.pairs) * heads / share
        # A window makes a document look as short as what a token sees of it.
        reach = length if seen["window"] is None else min(length, part * length)
        if self.shared is not None:
            return self._shared(node, share, block)
        dtype = RATES[node.value.dtype]
        forward, backward = (
            attention_time(flops, reach, backward=b, dtype=dtype, device=self.device, head_dim=width)
            for b in (False, True)
        )
        return Times(forward, backward if node.value.grad else 0.0)

    def heads(self, node: Node, share: int, block: Block) -> Heads:
        """An attention as one tensor rank sees it: heads that cannot be cut among ranks are there on each."""
        values = self.values[block.name]
        _, heads, _, width = values[node.refs()[0]].shape
        kv_heads = values[node.refs()[1]].shape[1]
        own = heads if heads % share else heads // share
        return Heads(own, gcd(own, max(1, kv_heads * own // heads)), width, node.value.dtype, **sight(node))

    def _shared(self, node: Node, share: int, block: Block) -> Times:
        """An attention of a group of ranks, over documents of the mean length."""
        assert self.shared is not None
        heads, length = self.heads(node, share, block), max(1, round(self.load.length))
        tokens = float(self.load.tokens * self.shared.mesh.sp)
        forward, backward = (
            self.shared.seconds(heads, length=length, tokens=tokens, backward=b) for b in (False, True)
        )
        return Times(forward, backward if node.value.grad else 0.0)

    def _loss(self, node: Node, rule: Rule, share: int, block: Block) -> Times:
        """Three products a chunk and four passes over the logits, all in forward; backward scales what was made."""
        x, weight = (block.value(r) for r in node.refs()[:2])
        vocabulary = max(weight.shape) if weight.shape[0] == x.shape[-1] else weight.shape[0]
        logits = float(self.load.tokens * vocabulary * SIZES[x.dtype]) / share
        scaled = 2.0 * (self.size(x) + 2.0 * self.size(weight) / share)
        products = self._head(x, weight, share, logits)
        around = self._stream(4.0 * logits) if self.fused else self.eager.loss(logits)
        return Times(products + around, self._stream(scaled))

    def _head(self, x: Tensor, weight: Tensor, share: int, logits: float) -> float:
        """The three products of the loss. Fused, the weight's gradient is summed over chunks in float32: begun with
        zeros, read and written by each, cast at the end."""
        flops = 2.0 * self.load.tokens * prod(weight.shape) / share
        dtype, matrix = RATES[x.dtype], self.size(weight) / share
        if not self.fused:
            return 3 * matmul_time(flops, self.size(x) / share + matrix, dtype, self.device)
        chunks, sums = max(1.0, self.load.tokens / CHUNK), 4.0 * prod(weight.shape) / share
        part = (self.size(x) + logits) / chunks
        one, other = (matmul_time(flops / chunks, part + own, dtype, self.device) for own in (matrix, 2.0 * sums))
        return chunks * (2 * one + other) + self._stream(2.0 * sums + matrix)

    def _gather(self, node: Node, share: int, block: Block) -> Times:
        """Rows read and written; backward adds them into a gradient of the table's size."""
        table = self.values[block.name][node.refs()[0]]
        rows = 2.0 * self.size(node.value) / share
        return Times(self._stream(rows), self._stream(rows + 2.0 * self.size(table) / share) if table.grad else 0.0)


def traffic(block: Block, seconds: Seconds) -> dict[str, float]:
    """Bytes each elementwise node moves: fused chains read what products made and write what others read."""
    made, values = {node.name: node for node in block.nodes}, seconds.values[block.name]
    elementwise = [node for node in block.nodes if op_of(node).kind in ("pointwise", "norm")]
    found: dict[str, float] = {}
    seen: set[str] = set()
    read_by_others = _read_by_others(block, made)
    for node in elementwise:
        moved = seconds.size(node.value) if node.name in read_by_others else 0.0
        for name in node.refs():
            root = root_of(name, made)
            if root not in seen and (root not in made or op_of(made[root]).kind not in FUSIBLE):
                seen.add(root)
                moved += seconds.size(values[root])
        found[node.name] = moved
    return found


def root_of(name: str, made: Mapping[str, Node]) -> str:
    """The value a chain of views looks at."""
    while name in made and op_of(made[name]).kind == "free" and made[name].refs():
        name = made[name].refs()[0]
    return name


def _read_by_others(block: Block, made: Mapping[str, Node]) -> set[str]:
    """Elementwise values that a product, a mixer or another block reads."""
    found = {root_of(o, made) for o in block.outputs}
    for node in block.nodes:
        if op_of(node).kind not in FUSIBLE:
            found.update(root_of(r, made) for r in node.refs())
    return found
