"""A block, and a graph, under a layout: what of its cost does not depend on how many tokens a micro-step holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

from fourfold.costmodel.memory import shard_elements
from fourfold.ir.graph import TOKENS, Block, Graph, Node, Tensor
from fourfold.ir.ops import rule_for
from fourfold.ir.plan import SIZES, Layout
from fourfold.ir.rule import WHOLE, Rule, State
from fourfold.ir.states import Made, Needs, states_of, stored
from fourfold.passes.price.saved import saved_values


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


@dataclass(frozen=True, slots=True)
class Row:
    """A parameter of one block on one rank: its shape there, how many there are, whether several calls read it."""

    shape: tuple[int, ...]
    trained: bool
    times: int
    shared: bool

    @property
    def elements(self) -> int:
        """Of all of them."""
        return self.times * prod(self.shape)

    def kept(self, shard: int) -> int:
        """Elements that one of `shard` ranks stores."""
        return self.times * shard_elements(self.shape, shard)


@dataclass(frozen=True)
class LaidGraph:
    """All blocks of a graph under their layouts over `n` tensor ranks."""

    graph: Graph
    layouts: Mapping[str, Layout]
    n: int
    known: dict[tuple[int, ...], tuple[Row, ...]] = field(default_factory=dict, repr=False)

    @cached_property
    def blocks(self) -> Mapping[str, Laid]:
        """Each block."""
        found = self.graph.blocks.items()
        return {name: Laid(block, self.layouts.get(name, Layout()), self.n) for name, block in found}

    def rows(self, calls: tuple[int, ...]) -> tuple[Row, ...]:
        """Every parameter of these calls once, whoever of them reads it."""
        if calls not in self.known:
            self.known[calls] = tuple(self._rows(calls))
        return self.known[calls]

    def _rows(self, calls: tuple[int, ...]) -> Iterator[Row]:
        chosen = [self.graph.calls[i] for i in calls]
        counts = Counter(call.block for call in chosen)
        readers: dict[str, list[tuple[str, str]]] = {}
        for call in chosen:
            for name in self.graph.blocks[call.block].parameters:
                readers.setdefault(call.fqn(name), []).append((call.block, name))
        shared = {key for keys in readers.values() if len(keys) > 1 for key in keys}
        first = {keys[0] for keys in readers.values()}
        for name in counts:
            laid = self.blocks[name]
            for parameter, (shape, trained) in zip(laid.block.parameters, laid.shapes, strict=True):
                key = (name, parameter)
                times = counts[name] if key in first and key not in shared else int(key in first)
                yield Row(shape, trained, times, key in shared)
