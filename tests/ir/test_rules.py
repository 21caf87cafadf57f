"""Every rule of every op, proven by brute force: cut the inputs, run each rank, join, compare; forward and backward.

The state of a value on n ranks, and that of its gradient: S chunks, S chunks; R copies, R copies; Q copies, partial
sums; P partial sums, copies.
"""

from __future__ import annotations

from dataclasses import replace
from threading import Barrier, Thread
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fourfold.backends.communication.collectives import Axis
from fourfold.backends.kernels.documents import Documents
from fourfold.backends.kernels.linear_loss import Vocabulary, linear_cross_entropy
from fourfold.backends.lowering.emit import Local, emit, local_shape
from fourfold.backends.lowering.lower import Lowered, Mixer
from fourfold.backends.stage.runner import Runner
from fourfold.ir.graph import TOKENS, Block, Node, Ref
from fourfold.ir.graph import Tensor as Value
from fourfold.ir.ops import OPS, rule_for, rules
from fourfold.ir.rule import WHOLE, Rule, State, bind

TOKEN_COUNT = 30
"""No other dim of an example is as large, so that it can be told in a result's shape."""

Shape = tuple[int, ...]


class Together:
    """A vocabulary reduction over threads: each rank waits for the others, then takes the result."""

    def __init__(self, n: int) -> None:
        self.barrier, self.slots = Barrier(n), [torch.empty(0)] * n

    def reduce(self, rank: int) -> Any:
        """The reduction of one rank."""

        def run(tensor: Tensor, how: str) -> None:
            self.slots[rank] = tensor.clone()
            self.barrier.wait()
            joined = torch.stack(self.slots)
            found = joined.amax(0) if how == "max" else joined.sum(0)
            self.barrier.wait()
            tensor.copy_(found)

        return run


def numbers(node: Node, generator: torch.Generator) -> list[Tensor]:
    """Random inputs of an example."""
    found = []
    for name in node.refs():
        shape = [TOKEN_COUNT * -d if d < 0 else d for d in shape_of(name)]
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
        kinds = {"f": x, "p": x.abs() * 0.4 + 0.1, "b": x > 0, "i": torch.randint(0, 6, shape, generator=generator)}
        found.append(kinds[name[0]])
    return found


def shape_of(name: str) -> Shape:
    return tuple(int(word) for word in name.split("_")[1:] if word)


def settled(node: Node) -> Node:
    """The node with the shape its whole result has, token counts written as such."""
    if node.value.shape or node.op == "loss":
        return node
    found = run(node, numbers(node, torch.Generator()), WHOLE, State("R"), Together(1), 0, 1)
    return replace(node, value=Value(tuple(TOKENS if d == TOKEN_COUNT else d for d in found.shape), "float64"))


def run(node: Node, inputs: list[Tensor], cut: str, gives: State, together: Together, rank: int, n: int) -> Tensor:
    """One rank's result, by the code that training uses."""
    if node.op == "attention":
        low = Lowered(Block("", {}, {}, {}, (), ()), (), {}, frozenset(), ())
        runner = Runner(low, (), Axis("", n, rank), lambda step, tensors: tensors[0])
        return runner._mix(Mixer(node, node.refs(), cut), tuple(inputs), Documents.of((11, 19), "cpu"))
    if node.op == "loss":
        return loss(inputs, cut, together.reduce(rank), rank)
    graph = torch.fx.Graph()
    env: dict[str, Any] = {name: graph.placeholder(f"x{i}") for i, name in enumerate(node.refs())}
    env["device"] = torch.device("cpu")
    local = Local(local_shape(node.value.shape, gives, n), gives if cut != WHOLE else None, rank, n)
    graph.output(emit(graph, node, env, local))
    module = torch.fx.GraphModule(torch.nn.Module(), graph)
    named = dict(zip(node.refs(), inputs, strict=True))
    result: Tensor = module(*named.values())
    return result


def loss(inputs: list[Tensor], cut: str, reduce: Any, rank: int) -> Tensor:
    x_1TD, weight_VD, targets_T, weights_T, *parameters = inputs
    rows = weight_VD.shape[0]
    vocabulary = Vocabulary(rank * rows, (rank + 1) * rows, reduce) if cut == "v" else Vocabulary(0, rows)
    suffix = (lambda logits, bias, scale: scale * torch.tanh(logits + bias)) if parameters else None
    given_by_engine: Any = {
        "scale": 0.5,
        "chunk": 7,
        "vocab": vocabulary,
        "suffix": suffix,
        "parameters": tuple(parameters),
    }
    return linear_cross_entropy(x_1TD[0], weight_VD, targets_T, weights_T.float(), **given_by_engine)


def spread(x: Tensor, state: State, n: int, generator: torch.Generator) -> list[Tensor]:
    """What each rank holds of `x` in `state`."""
    if state.kind == "S":
        return list(x.chunk(n, state.dim))
    if state.kind != "P":
        return [x] * n
    parts = [torch.randn(x.shape, generator=generator, dtype=x.dtype) for _ in range(n - 1)]
    return [*parts, x - sum(parts)]


def differs(parts: list[Tensor], whole: Tensor, state: State) -> bool:
    """Whether the ranks' parts are not `whole` in `state`."""
    if state.kind == "S":
        return not close(torch.cat(parts, state.dim), whole)
    if state.kind == "P":
        return not close(torch.stack(parts).sum(0), whole)
    return any(not close(part, whole) for part in parts)


def close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-9, atol=1e-9, equal_nan=True)


DUAL = {"S": "S", "R": "R", "Q": "P", "P": "R"}


def faults(node: Node, rule: Rule, cut: str, n: int) -> list[str]:
    """What the rule says wrongly of this cut: empty when every join equals the whole."""
    generator = torch.Generator().manual_seed(0)
    inputs = numbers(node, generator)
    needs, gives = rule.needs(cut), rule.gives(cut)
    leaves = [leaf(x) for x in inputs]
    whole = run(node, leaves, WHOLE, State("R"), Together(1), 0, 1)
    parts = [[leaf(p) for p in spread(x, s, n, generator)] for x, s in zip(inputs, needs, strict=True)]
    together, results = Together(n), [torch.empty(0)] * n

    def rank(r: int) -> None:
        try:
            results[r] = run(node, [p[r] for p in parts], cut, gives, together, r, n)
        except RuntimeError:
            together.barrier.abort()

    each(rank, n)
    if differs([r.detach() for r in results], whole.detach(), gives):
        return [f"{cut}: the result is not {gives}"]
    if not whole.requires_grad:
        return []
    gradient = torch.randn(whole.shape, generator=generator, dtype=whole.dtype)
    whole.backward(gradient)
    dual = State(DUAL[gives.kind], gives.dim)
    for result, g in zip(results, spread(gradient, dual, n, generator), strict=True):
        result.backward(g)
    found = []
    for i, (x, need) in enumerate(zip(leaves, needs, strict=True)):
        if x.grad is not None and differs([gradient_of(p) for p in parts[i]], x.grad, State(DUAL[need.kind], need.dim)):
            found.append(f"{cut}: the gradient of input {i} is not that of {need}")
    return found


def each(function: Any, n: int) -> None:
    threads = [Thread(target=function, args=(r,)) for r in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def leaf(x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_(x.is_floating_point())


def gradient_of(x: Tensor) -> Tensor:
    return torch.zeros_like(x) if x.grad is None else x.grad


def values_of(node: Node) -> dict[str, Value]:
    return {name: Value(shape_of(name), "float64") for name in node.refs()}


def claims(node: Node, n: int) -> list[tuple[Rule, str]]:
    """Every cut that the rules of a node allow on n ranks, with the rule that knows it."""
    values = values_of(node)
    cuts = dict.fromkeys(cut for rule in rules(node, values) for cut in rule.cuts(n))
    return [(rule_for(node, values, cut), cut) for cut in cuts]


def test_every_op_has_an_example(examples: dict[str, tuple[Node, ...]]) -> None:
    assert set(examples) == set(OPS)


@pytest.mark.parametrize("n", [2, 3])
def test_every_cut_joins_to_the_whole(case: Node, n: int) -> None:
    node = settled(case)
    wrong = [fault for rule, cut in claims(node, n) for fault in faults(node, rule, cut, n)]
    assert not wrong, wrong


PLANTED = {
    "a norm over a label that may be cut": ("rms_norm", "* d, d -> * d", False),
    "a softmax whose dim may be cut": ("softmax", "* d -> * d", False),
    "a product without its sum": ("linear", "* !d, f d -> * !f", True),
    "an elementwise op that lets partial sums pass": ("gelu", "* -> *", True),
    "a sum that is taken for whole": ("linear", "* &d, f &d -> * f", False),
    "a head of which one rank knows all": ("loss", "b t !d, v !d, t, t -> .", False),
    "dims told apart wrongly": ("permute", "a b c d -> a b d c", True),
    "a table cut by columns whose rows are whole": ("embedding", "v d, * -> * e", False),
}


@pytest.mark.parametrize("what", PLANTED)
def test_a_planted_wrong_rule_is_seen(what: str, examples: dict[str, tuple[Node, ...]]) -> None:
    op, line, linear = PLANTED[what]
    node = settled(examples[op][0])
    rule = bind(line, tuple(shape_of(r) for r in node.refs()), node.value.shape, linear=linear)
    assert any(faults(node, rule, cut, 2) for cut in rule.cuts(2))


def grouped(factors: list[int], breaks: list[bool]) -> Shape:
    """The factors multiplied together where there is no break; a -1 among them stays the token count."""
    shape = [factors[0]]
    for factor, fresh in zip(factors[1:], breaks, strict=False):
        if fresh:
            shape.append(factor)
        else:
            shape[-1] *= factor
    return tuple(shape)


@settings(max_examples=60, deadline=None)
@given(
    factors=st.lists(st.sampled_from([1, 2, 3, 6]), min_size=2, max_size=5),
    token=st.booleans(),
    breaks=st.tuples(*[st.lists(st.booleans(), min_size=6, max_size=6)] * 2),
    n=st.sampled_from([2, 3]),
)
def test_any_reshape_is_cut_rightly(
    factors: list[int], token: bool, breaks: tuple[list[bool], list[bool]], n: int
) -> None:
    factors = [1, TOKENS, *factors] if token else factors
    source, target = (grouped(factors, b) for b in breaks)
    node = example_view(source, target)
    wrong = [fault for rule, cut in claims(node, n) for fault in faults(node, rule, cut, n)]
    assert not wrong, (source, target, wrong)


def example_view(source: Shape, target: Shape) -> Node:
    name = f"f0_{'_'.join(map(str, source))}"
    return Node("view", "view", (Ref(name),), (), Value(target, "float64"))
