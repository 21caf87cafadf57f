"""What one call of each block costs on one rank under a layout: seconds by kind, tensor communication, kept bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

from fourfold.costmodel.memory import attention_workspace
from fourfold.ir.conversion import conversion
from fourfold.ir.graph import TOKENS, Block, Node, Tensor
from fourfold.ir.ops import op_of, rule_for
from fourfold.ir.plan import SIZES, Layout
from fourfold.ir.rule import WHOLE, Q, Rule, State
from fourfold.ir.states import Made, Needs, states_of, stored
from fourfold.passes.saved import saved_values
from fourfold.passes.seconds import Seconds, Times

KINDS: Mapping[str, str] = {"matmul": "products", "attention": "attention", "loss": "loss"}
ELEMENTWISE = "elementwise"


@dataclass(frozen=True, slots=True)
class Replay:
    """Seconds of forward work that backward does again: computation, and communication on the tensor axis."""

    compute: float = 0.0
    communication: float = 0.0


@dataclass(frozen=True, slots=True)
class BlockWork:
    """One call of one block on one rank, for one micro-step.

    `compute` by kind (products, attention, loss, elementwise); `tensor` communication on the tensor axis; `kept` bytes
    from forward to backward by recompute mode, and `scratch` of its kernels, both in the fullest micro-step.
    """

    compute: Mapping[str, Times]
    tensor: Times
    kept: Mapping[str, float]
    scratch: float

    @property
    def total(self) -> Times:
        """Compute of all kinds."""
        return sum(self.compute.values(), Times())

    def replay(self, mode: str) -> Replay:
        """What is done again in backward: the forward, without attention for "regions"."""
        if mode == "none":
            return Replay()
        spared = self.compute["attention"].forward if mode == "regions" else 0.0
        return Replay(self.total.forward - spared, self.tensor.forward)


@dataclass(frozen=True)
class Laid:
    """A block under a layout over `n` tensor ranks: what of its work does not depend on the load."""

    block: Block
    layout: Layout
    n: int

    @cached_property
    def states(self) -> tuple[Made, Needs]:
        """The state each value is made in, and those each node needs its inputs in."""
        return states_of(self.block, self.layout)

    @cached_property
    def rules(self) -> tuple[tuple[Node, Rule, str], ...]:
        """Each node with its cut and the rule that knows it."""
        values, cuts = self.block.values(), self.layout.cuts
        named = ((node, cuts.get(node.name, WHOLE)) for node in self.block.nodes)
        return tuple((node, rule_for(node, values, cut), cut) for node, cut in named)

    @cached_property
    def saved(self) -> tuple[tuple[str, State], ...]:
        """The values kept for backward when nothing is recomputed, each in the state it is kept in."""
        return saved_values(self.block, *self.states, self.per_token)

    @cached_property
    def moves(self) -> tuple[tuple[str, State], ...]:
        """Each (value, state) that some reader or the next block needs; every one is moved once."""
        _, needs = self.states
        nodes = self.block.nodes
        wanted = [(r, s) for node in nodes for r, s in zip(node.refs(), needs[node.name], strict=True)]
        losses = {node.name for node in nodes if node.op == "loss"}
        leaving = [o for o in self.block.outputs if o not in losses]
        wanted += [(o, State.parse(self.layout.states.get(o, "R"))) for o in leaving]
        return tuple(dict.fromkeys(wanted))

    @cached_property
    def shapes(self) -> tuple[tuple[tuple[int, ...], bool], ...]:
        """Each parameter's shape on one tensor rank, and whether it is trained."""
        return tuple((self._local(name), value.grad) for name, value in self.block.parameters.items())

    @cached_property
    def held(self) -> int:
        """Parameter elements of this rank before the pool shards them."""
        return sum(prod(shape) for shape, _ in self.shapes)

    @cached_property
    def trained(self) -> int:
        """Those of them that are trained."""
        return sum(prod(shape) for shape, grad in self.shapes if grad)

    def share(self, state: State) -> int:
        """Over how many ranks a value in this state is spread."""
        return self.n if state.kind == "S" else 1

    def per_token(self, name: str, state: State) -> float:
        """Bytes a token of a value on one rank."""
        return size_of(self.block.value(name), 1) / self.share(state)

    def _local(self, name: str) -> tuple[int, ...]:
        state = stored(self.block, name, self.states[1])
        shape = self.block.parameters[name].shape
        return tuple(d // self.share(state) if i == state.dim else d for i, d in enumerate(shape))


def size_of(value: Tensor, tokens: int) -> float:
    """Bytes of a whole value."""
    return float(SIZES[value.dtype] * prod(tokens if d == TOKENS else d for d in value.shape))


def work(laid: Laid, seconds: Seconds) -> BlockWork:
    """The work of one block."""
    compute = {kind: Times() for kind in (*KINDS.values(), ELEMENTWISE)}
    for node, rule, cut in laid.rules:
        compute[KINDS.get(op_of(node).kind, ELEMENTWISE)] += seconds.op(node, rule, cut, laid.block)
    return BlockWork(compute, _tensor(laid, seconds), _kept(laid, seconds), _scratch(laid, seconds))


def _tensor(laid: Laid, seconds: Seconds) -> Times:
    """Every move once a value and state; replicated parameters read by cut ops reduce their gradient."""
    total = Times()
    for name, needed in laid.moves:
        if name in laid.block.buffers:
            continue
        value = seconds.values[laid.block.name][name]
        if name in laid.block.parameters:
            if needed == Q and value.grad:
                total += Times(0.0, seconds.move("all_reduce", seconds.size(value)))
            continue
        total += _moved(value, laid.states[0][name], needed, seconds)
    return total


def _moved(value: Tensor, made: State, needed: State, seconds: Seconds) -> Times:
    change = conversion(made, needed)
    if change is None:
        return Times()
    size, n = seconds.size(value), seconds.tensor.size
    forward, backward = (
        seconds.copied(value, n if move.op == "slice" else 1)
        if move.local
        else seconds.move(move.op, size / n if move.op == "all_to_all" else size)
        for move in (change.forward, change.backward)
    )
    return Times(forward, backward if value.grad else 0.0)


def _kept(laid: Laid, seconds: Seconds) -> dict[str, float]:
    """Bytes from forward to backward: everything, or block inputs with what mixers made, or block inputs alone."""
    made, tokens = laid.states[0], seconds.load.fullest
    values = seconds.values[laid.block.name]

    def total(kept: Iterator[tuple[str, State]]) -> float:
        return sum(size_of(values[name], tokens) / laid.share(state) for name, state in kept)

    edges = total((name, made[name]) for name, value in laid.block.inputs.items() if value.grad)
    mixers = list(_attentions(laid.block))
    mixed = total((node.name, made[node.name]) for node in mixers)
    # Beside its output, attention keeps a log-sum-exp of 4 bytes a head and token.
    sums = 4.0 * tokens * sum(node.value.shape[1] / laid.share(made[node.name]) for node in mixers)
    return {"none": total(iter(laid.saved)) + sums, "regions": edges + mixed + sums, "full": edges}


def _scratch(laid: Laid, seconds: Seconds) -> float:
    """Bytes at most that one attention backward needs beside its operands."""
    values = seconds.values[laid.block.name]
    found = [0.0]
    for node in _attentions(laid.block):
        _, heads, _, width = values[node.refs()[0]].shape
        kv_heads, share = values[node.refs()[1]].shape[1], laid.share(laid.states[0][node.name])
        whole = attention_workspace(
            tokens=seconds.load.fullest, heads=heads, kv_heads=kv_heads, head_dim=width, width=SIZES[node.value.dtype]
        )
        found.append(whole.high / share)
    return max(found)


def _attentions(block: Block) -> Iterator[Node]:
    return (node for node in block.nodes if node.op == "attention")
