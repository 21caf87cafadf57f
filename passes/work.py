"""What one call of each block costs on one rank under a layout: seconds by kind, tensor communication, kept bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from fourfold.ir.conversion import conversion
from fourfold.ir.graph import Block, Graph
from fourfold.ir.ops import op_of, rule_for
from fourfold.ir.plan import SIZES, Layout
from fourfold.ir.rule import WHOLE, Q, State
from fourfold.passes.saved import saved_bytes
from fourfold.passes.seconds import Seconds, Times

KINDS: Mapping[str, str] = {"matmul": "products", "attention": "attention", "loss": "loss"}


@dataclass(frozen=True, slots=True)
class BlockWork:
    """One call of one block on one rank, for one micro-step.

    `compute` by kind (products, attention, loss, elementwise); `tensor` communication on the tensor axis; `kept` bytes
    from forward to backward by recompute mode; `held` and `trained` parameter elements of this rank before the pool
    shards them; `rows` its parameters' local shapes.
    """

    compute: Mapping[str, Times]
    tensor: Times
    kept: Mapping[str, float]
    held: int
    trained: int
    shapes: tuple[tuple[tuple[int, ...], bool], ...]

    @property
    def total(self) -> Times:
        """Compute of all kinds."""
        return sum(self.compute.values(), Times())

    def replay(self, mode: str) -> Times:
        """What is done again in backward: compute and communication of the forward, without attention for "regions"."""
        if mode == "none":
            return Times()
        forward = self.total.forward - (self.compute["attention"].forward if mode == "regions" else 0.0)
        return Times(forward, self.tensor.forward)


def states(block: Block, layout: Layout) -> tuple[dict[str, State], dict[str, tuple[State, ...]]]:
    """The state each value is made in, and those each node needs its inputs in."""
    values = block.values()
    made = {name: State.parse(layout.states.get(name, "R")) for name in block.inputs}
    needs = {}
    for node in block.nodes:
        cut = layout.cuts.get(node.name, WHOLE)
        rule = rule_for(node, values, cut)
        made[node.name], needs[node.name] = rule.gives(cut), rule.needs(cut)
    return made, needs


def work(graph: Graph, layouts: Mapping[str, Layout], seconds: Seconds) -> dict[str, BlockWork]:
    """The work of every block."""
    return {name: _block_work(block, layouts.get(name, Layout()), seconds) for name, block in graph.blocks.items()}


def _block_work(block: Block, layout: Layout, seconds: Seconds) -> BlockWork:
    made, needs = states(block, layout)
    values = block.values()
    compute = {kind: Times() for kind in (*KINDS.values(), "elementwise")}
    for node in block.nodes:
        cut = layout.cuts.get(node.name, WHOLE)
        kind = KINDS.get(op_of(node).kind, "elementwise")
        compute[kind] += seconds.op(node, rule_for(node, values, cut), cut, block)
    shapes = tuple((_local(block, p, needs, seconds.tensor.size), v.grad) for p, v in block.parameters.items())
    held = sum(prod(shape) for shape, _ in shapes)
    trained = sum(prod(shape) for shape, grad in shapes if grad)
    return BlockWork(compute, _tensor(block, layout, made, needs, seconds), _kept(block, made, needs, seconds), held, trained, shapes)


def _local(block: Block, name: str, needs: Mapping[str, tuple[State, ...]], n: int) -> tuple[int, ...]:
    """A parameter's shape on one tensor rank."""
    shape = block.parameters[name].shape
    found = [s for node in block.nodes for r, s in zip(node.refs(), needs[node.name], strict=True) if r == name and s.kind == "S"]
    return tuple(d // n if found and i == found[0].dim else d for i, d in enumerate(shape))


def _tensor(block: Block, layout: Layout, made: Mapping[str, State], needs: Mapping[str, tuple[State, ...]], seconds: Seconds) -> Times:
    """Every move once a value and state; replicated parameters read by cut ops reduce their gradient."""
    total = Times()
    moves = dict.fromkeys((r, s) for node in block.nodes for r, s in zip(node.refs(), needs[node.name], strict=True))
    losses = {n.name for n in block.nodes if n.op == "loss"}
    moves |= dict.fromkeys((o, State.parse(layout.states.get(o, "R"))) for o in block.outputs if o not in losses)
    for name, needed in moves:
        value = block.value(name)
        if name in block.parameters or name in block.buffers:
            if needed == Q and value.grad:
                total += Times(0.0, seconds.move("all_reduce", seconds.size(value)))
            continue
        change = conversion(made[name], needed)
        if change is None:
            continue
        size = seconds.size(value)
        forward, backward = (
            0.0 if m.local else seconds.move(m.op, size / seconds.tensor.size if m.op == "all_to_all" else size)
            for m in (change.forward, change.backward)
        )
        total += Times(forward, backward if value.grad else 0.0)
    return total


def _kept(block: Block, made: dict[str, State], needs: dict[str, tuple[State, ...]], seconds: Seconds) -> dict[str, float]:
    n = seconds.tensor.size

    def size(name: str, state: State) -> float:
        return seconds.size(block.value(name)) / (n if state.kind == "S" else 1)

    edges = sum(size(name, made[name]) for name, value in block.inputs.items() if value.grad)
    mixed = 0.0
    for node in block.nodes:
        if node.op == "attention":
            heads = node.value.shape[1] / (n if made[node.name].kind == "S" else 1)
            mixed += size(node.name, made[node.name]) + 4.0 * heads * seconds.load.tokens
    everything = saved_bytes(block, made, needs, size) + mixed_lse(block, made, seconds)
    return {"none": everything, "regions": edges + mixed, "full": edges}


def mixed_lse(block: Block, made: Mapping[str, State], seconds: Seconds) -> float:
    """Bytes of the log-sum-exps attention keeps: 4 a head and token."""
    n = seconds.tensor.size
    heads = sum(node.value.shape[1] / (n if made[node.name].kind == "S" else 1) for node in block.nodes if node.op == "attention")
    return 4.0 * heads * seconds.load.tokens


def logits_width(graph: Graph) -> tuple[int, int, int]:
    """Vocabulary, width and element size of the head."""
    for block in graph.blocks.values():
        for node in block.nodes:
            if node.op == "loss":
                weight = block.value(node.refs()[1])
                width = block.value(node.refs()[0]).shape[-1]
                return prod(weight.shape) // width, width, SIZES[weight.dtype]
    raise AssertionError("a graph ends in its loss")


def model_flops(graph: Graph, tokens: int, pairs: float) -> float:
    """Model FLOPs of one optimizer step: forward once, backward twice, causal attention by its pairs (half a square)."""
    total = 0.0
    for block in graph.blocks.values():
        values = block.values()
        for node in block.nodes:
            kind = op_of(node).kind
            if kind in ("matmul", "loss"):
                rule = rule_for(node, values, WHOLE)
                points = prod(s for s in block.value(node.refs()[1]).shape) * tokens if kind == "loss" else rule.points(tokens)
                total += graph.counts[block.name] * 6.0 * points
            if kind == "attention":
                shape = block.value(node.refs()[0]).shape
                causal = dict(node.kwargs)["causal"]
                total += graph.counts[block.name] * 12.0 * shape[1] * shape[3] * pairs * (1 if causal else 2)
    return total


