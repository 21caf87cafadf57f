"""What one call of each block costs on one rank under a layout: seconds by kind, tensor communication, kept bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fourfold.costmodel.kernel import chore_time
from fourfold.costmodel.memory import attention_workspace
from fourfold.ir.conversion import conversion
from fourfold.ir.graph import Block, Node, Tensor
from fourfold.ir.ops import op_of
from fourfold.ir.plan import SIZES
from fourfold.ir.rule import Q, State
from fourfold.passes.price.laid import Laid, size_of
from fourfold.passes.price.seconds import Seconds, Times
from fourfold.passes.price.waiting import Waiting, waiting

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
    from forward to backward by recompute mode, and `scratch` of its kernels, both in the fullest micro-step; `late` is
    what a split backward leaves.
    """

    compute: Mapping[str, Times]
    tensor: Times
    kept: Mapping[str, float]
    scratch: float
    late: Waiting = Waiting()  # noqa: RUF009

    @property
    def total(self) -> Times:
        """Compute of all kinds."""
        return sum(self.compute.values(), Times())

    def replay(self, mode: str) -> Replay:
        """What is done again in backward: the forward, without attention for "regions"; a loss keeps its gradients."""
        if mode == "none" or self.compute["loss"].forward:
            return Replay()
        spared = self.compute["attention"].forward if mode == "regions" else 0.0
        return Replay(self.total.forward - spared, self.tensor.forward)


def work(laid: Laid, seconds: Seconds) -> BlockWork:
    """The work of one block."""
    compute = {kind: Times() for kind in (*KINDS.values(), ELEMENTWISE)}
    for node, rule, cut in laid.rules:
        compute[KINDS.get(op_of(node).kind, ELEMENTWISE)] += seconds.op(node, rule, cut, laid.block)
    late = waiting(laid, seconds)
    return BlockWork(compute, _tensor(laid, seconds), _kept(laid, seconds), _scratch(laid, seconds), late)


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
    issued = chore_time("move", seconds.device) / 2
    forward, backward = (
        issued + seconds.copied(value, n if move.op == "slice" else 1)
        if move.local
        else issued + seconds.move(move.op, size / n if move.op == "all_to_all" else size)
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
        if seconds.shared is not None:
            found.append(seconds.shared.scratch(seconds.heads(node, share, laid.block), seconds.load.fullest))
        whole = attention_workspace(
            tokens=seconds.load.fullest, heads=heads, kv_heads=kv_heads, head_dim=width, width=SIZES[node.value.dtype]
        )
        found.append(whole.high / share)
    return max(found)


def _attentions(block: Block) -> Iterator[Node]:
    return (node for node in block.nodes if node.op == "attention")
