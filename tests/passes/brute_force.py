"""Every legal way to cut a small graph over the tensor axis, and what each takes: the slow obvious layout search.

Written from the rules and the table of conversions alone. One state for the stream that all blocks hand on; beside it
only the weight that first and last block may share. A weight that can be cut is cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from math import inf

from fourfold.ir.conversion import conversion, convertible
from fourfold.ir.graph import Block, Graph, Node, Tensor
from fourfold.ir.ops import rule_for, rules
from fourfold.ir.plan import Layout
from fourfold.ir.rule import PARTIAL, WHOLE, State, divides
from fourfold.passes.cutting.cutting import Prices
from fourfold.passes.price.laid import size_of

Term = tuple[str, str, str]
"""What is paid: ("op", node, cut), or (collective, value, distinguishing text)."""
States = tuple[tuple[State, ...], State]
"""In which an op needs its inputs, and gives its output."""
Shared = tuple[str, str]
"""What blocks must agree on: the state of the stream, and that of a weight that two of them read ("" for none)."""


@dataclass(frozen=True, slots=True)
class Way:
    """One legal assignment of a block: the cut of each node, what it shares with other blocks, what it pays."""

    cuts: Mapping[str, str]
    shared: Shared
    terms: frozenset[Term]


def _labels(block: Block, node: Node, n: int) -> dict[str, States]:
    """Each cut of a node with its states: what is dropped out is cut, and so is every matrix that can be."""
    values, found = block.values(), {}
    for label in (label for rule in rules(node, values) for label in rule.cuts(n)):
        rule = rule_for(node, values, label)
        read = zip(node.refs(), rule.needs(label), strict=True)
        whole = any(state.kind != "S" and _cuttable(block, name, n) for name, state in read)
        if not whole and (node.op != "dropout" or label not in (WHOLE, PARTIAL)):
            found[label] = rule.needs(label), rule.gives(label)
    return found


def _cuttable(block: Block, name: str, n: int) -> bool:
    shape = block.parameters[name].shape if name in block.parameters else ()
    return len(shape) > 1 and any(divides(n, size) for size in shape)


def ways(block: Block, n: int) -> Iterator[Way]:
    """Every legal assignment of one block."""
    shape = next((v.shape for v in block.values().values() if len(v.shape) == 3), ())
    stream = ["R", *(f"S{i}" for i, size in enumerate(shape) if divides(n, size))]
    tables = [_labels(block, node, n) for node in block.nodes]
    names = [node.name for node in block.nodes]
    for state, chosen in product(stream, product(*(table.items() for table in tables))):
        way = _way(block, state, dict(zip(names, chosen, strict=True)))
        if way is not None:
            yield way


def _way(block: Block, stream: str, chosen: Mapping[str, tuple[str, States]]) -> Way | None:
    """The assignment, unless some value cannot be read as its readers need it."""
    made = {name: State.parse(stream if name == "x" else "R") for name in block.inputs}
    needed: dict[str, set[State]] = {name: set() for name in block.values()}
    for node in block.nodes:
        _, (needs, made[node.name]) = chosen[node.name]
        for name, state in zip(node.refs(), needs, strict=True):
            needed[name].add(state)
    if block.outputs[0] != "loss":
        needed[block.outputs[0]].add(State.parse(stream))
    kept = {name: _kept(needed[name]) for name in block.parameters}
    reads = [(name, state, other) for name, state in made.items() for other in needed[name]]
    if None in kept.values() or not all(convertible(state, other) for _, state, other in reads):
        return None
    terms = {("op", name, cut) for name, (cut, _) in chosen.items()}
    terms |= {
        (op, name, f"{state}>{other}/{k}")
        for name, state, other in reads
        for k, op in _moves(block.value(name), state, other)
    }
    terms |= {("all_reduce", name, "gradient") for name in kept if State("Q") in needed[name]}
    tied = next((str(state) for name, state in kept.items() if name.startswith("/")), "")
    return Way({name: cut for name, (cut, _) in chosen.items()}, (stream, tied), frozenset(terms))


def _moves(value: Tensor, made: State, needed: State) -> Iterator[tuple[int, str]]:
    """The collectives of a value, forward (0) and of its gradient (1)."""
    change = conversion(made, needed)
    if change is not None:
        moves = (change.forward, change.backward) if value.grad else (change.forward,)
        yield from ((k, move.op) for k, move in enumerate(moves) if not move.local)


def _kept(needed: set[State]) -> State | None:
    """How a weight lies: as all its readers take it; None where they differ."""
    if all(state.kind in ("R", "Q") for state in needed):
        return State("R")
    return next(iter(needed)) if len(needed) == 1 and State("P") not in needed else None


class BruteForce:
    """All legal layouts of one graph over `n` ranks, to be priced as often as asked."""

    def __init__(self, graph: Graph, n: int) -> None:
        self.graph, self.n = graph, n
        self.ways = {name: tuple(ways(block, n)) for name, block in graph.blocks.items()}

    def least(self, prices: Prices) -> float:
        """Seconds of the fastest layout: for all that blocks may agree on, the fastest way of each block."""
        best: dict[str, dict[Shared, float]] = {}
        for name, found in self.ways.items():
            terms = self._terms(name, prices)
            table = best.setdefault(name, {})
            for way in found:
                seconds = sum(terms[term] for term in way.terms)
                table[way.shared] = min(seconds, table.get(way.shared, seconds))
        streams, weights = (sorted({way.shared[i] for found in self.ways.values() for way in found}) for i in (0, 1))
        totals = (
            [min(best[name].get((stream, one), inf) for one in (tied, "")) for name in self.ways]
            for stream, tied in product(streams, weights)
        )
        return min(sum(each) for each in totals)

    def price(self, layouts: Mapping[str, Layout], prices: Prices) -> float:
        """Seconds of one layout. Raises StopIteration where it is not legal."""
        total = 0.0
        for name, found in self.ways.items():
            layout, terms = layouts[name], self._terms(name, prices)
            stream = layout.states.get("x" if "x" in self.graph.blocks[name].inputs else "look", "R")
            cuts = {node: layout.cuts.get(node, WHOLE) for node in found[0].cuts}
            way = next(way for way in found if way.shared[0] == stream and way.cuts == cuts)
            total += sum(terms[term] for term in way.terms)
        return total

    def _terms(self, name: str, prices: Prices) -> dict[Term, float]:
        """Seconds of everything that some way of a block pays."""
        block, count = self.graph.blocks[name], self.graph.counts[name]
        nodes, values = {node.name: node for node in block.nodes}, block.values()
        found = {}
        for kind, of, cut in {term for way in self.ways[name] for term in way.terms}:
            if kind == "op":
                found[kind, of, cut] = count * prices.op(nodes[of], rule_for(nodes[of], values, cut), cut, block)
            else:
                share = self.n if kind == "all_to_all" else 1
                found[kind, of, cut] = count * prices.move(kind, size_of(values[of], prices.tokens) / share)
        return found
