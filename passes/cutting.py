"""One cut per op on the tensor axis, by a flow linear program over the folded blocks.

Variables: x[v, c] in {0, 1}, op v uses cut c; e[v, w, c, d], the edge v -> w joins them; m[v, a, b], value v made in
state a is moved to state b (once, whoever reads it).  Minimise sum t[v, c] x + sum t[move] m, each times how often the
block runs, subject to sum_c x = 1, sum_d e = x[v, c], sum_c e = x[w, d], m[v, a, b] >= e of every reader.
A repeated block's outputs and inputs share one state, so its cost is exact for any depth. The relaxation is nearly
always integral; HiGHS branches where it is not (AutoParallel's flow form; Alpa, arXiv 2201.12023, section 4).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fourfold.hardware.errors import UsageError
from fourfold.ir.conversion import conversion, convertible
from fourfold.ir.graph import INPUTS, TOKENS, Block, Graph, Node, Tensor
from fourfold.ir.ops import op_of, rules
from fourfold.ir.plan import SIZES, Layout
from fourfold.ir.rule import PARTIAL, WHOLE, Rule, State, divides
from fourfold.passes.boundaries import boundaries
from fourfold.passes.flow import Flow

OpTime = Callable[[Node, Rule, str, Block], float]
MoveTime = Callable[[str, float], float]

FINE = 4.0
"""A whole copy of a matrix that could be cut is charged so many times what its readers take whole, with an all-reduce
of all they read and make: it happens only where nothing else is legal. To cut tokens instead of weights is what the
pool is for."""


@dataclass(frozen=True, slots=True)
class Prices:
    """Seconds of one op in one cut (forward and backward), and of one collective on the axis by bytes."""

    op: OpTime
    move: MoveTime
    tokens: int


def cut(
    graph: Graph, n: int, prices: Prices, pinned: Mapping[tuple[str, str], str] | None = None
) -> tuple[dict[str, Layout], float]:
    """The layout of each block over `n` ranks that takes least time, and the seconds of its micro-step.

    `pinned` maps (block, node) to a label. Raises UsageError for a pin that no rule allows, InfeasibleError when no
    choice is legal.
    """
    return _Problem(graph, n, prices, pinned or {}).solve()


@dataclass(frozen=True, slots=True)
class _Reader:
    """Who reads a value: input `index` of a node, or (None) the block's output boundary."""

    place: str
    key: str
    node: Node | None
    index: int


class _Problem:
    """The program under construction: one flow node per op, block input, output boundary and parameter."""

    def __init__(self, graph: Graph, n: int, prices: Prices, pinned: Mapping[tuple[str, str], str]) -> None:
        self.graph, self.n, self.prices, self.pinned = graph, n, prices, pinned
        self.flow = Flow()
        self.boundary = boundaries(graph)
        self.values = {name: block.values() for name, block in graph.blocks.items()}
        self.rules: dict[str, tuple[Rule, ...]] = {}
        self.fines: dict[str, float] = {}

    def solve(self) -> tuple[dict[str, Layout], float]:
        """Builds, solves, reads the layouts back."""
        for place in dict.fromkeys(self.boundary.values()):
            self.flow.node(place, self._boundary_options(place))
        for block in self.graph.blocks.values():
            for node in block.nodes:
                self._node(block, node)
        for block in self.graph.blocks.values():
            self._stored(block)
            self._edges(block)
        self._ties()
        chosen, seconds = self.flow.solve()
        layouts = {name: self._layout(block, chosen) for name, block in self.graph.blocks.items()}
        return layouts, seconds - sum(fine for place, fine in self.fines.items() if chosen[place] == "R")

    def _boundary_options(self, place: str) -> dict[str, float]:
        """States a value may cross blocks in: whole, or cut along any dim the axis divides; graph inputs are whole."""
        block, name = next(key for key, at in self.boundary.items() if at == place)
        options = {"R": 0.0}
        if place not in INPUTS:
            shape = self.values[block][name].shape
            options |= {f"S{i}": 0.0 for i, size in enumerate(shape) if divides(self.n, size)}
        return options

    def _node(self, block: Block, node: Node) -> None:
        here = _id(block, node.name)
        self.rules[here] = found = rules(node, self.values[block.name])
        options = {}
        for label in dict.fromkeys(c for rule in found for c in rule.cuts(self.n)):
            if node.op == "dropout" and label in (WHOLE, PARTIAL):
                # Each rank draws its own mask, so what is dropped must be cut.
                continue
            seconds = self.prices.op(node, self._rule(here, label), label, block)
            options[label] = self.graph.counts[block.name] * seconds
        pin = self.pinned.get((block.name, node.name))
        if pin is not None and pin not in options:
            raise UsageError(_pin_error(pin, node, block, found, self.n))
        self.flow.node(here, options if pin is None else {pin: options[pin]})
        self._fine(block, node, max(options.values(), default=0.0))

    def _fine(self, block: Block, node: Node, whole: float) -> None:
        """Adds what reading them whole may save to the fines of a node's matrices."""
        values, count = self.values[block.name], self.graph.counts[block.name]
        matrices = [r for r in node.refs() if r in block.parameters and len(values[r].shape) > 1]
        if matrices:
            moved = sum(2.0 * self._collective("all_reduce", values[name]) for name in (node.name, *node.refs()))
            for name in dict.fromkeys(matrices):
                place = _id(block, name)
                self.fines[place] = self.fines.get(place, 0.0) + FINE * (whole + count * moved)

    def _rule(self, node: str, label: str) -> Rule:
        found = self.rules[node]
        return next((rule for rule in found if label in rule.sizes), found[0])

    def _stored(self, block: Block) -> None:
        """States of parameters and buffers: a matrix kept whole pays a fine, buffers are whole."""
        for name, value in block.parameters.items():
            here = _id(block, name)
            cuts = {f"S{i}": 0.0 for i, size in enumerate(value.shape) if divides(self.n, size)}
            fine = self.fines.setdefault(here, 0.0) if cuts else 0.0
            self.flow.node(here, {"R": fine, **cuts})
        for name in block.buffers:
            self.flow.node(_id(block, name), {"R": 0.0})

    def _edges(self, block: Block) -> None:
        readers: dict[str, list[_Reader]] = {name: [] for name in self.values[block.name]}
        for node in block.nodes:
            for i, name in enumerate(node.refs()):
                readers[name].append(_Reader(_id(block, node.name), f"{name}/{i}", node, i))
        for name in block.outputs:
            if name not in _losses(block):
                readers[name].append(_Reader(self.boundary[block.name, name], f"{name}/out", None, -1))
        for name, found in readers.items():
            self._value(block, name, found)

    def _value(self, block: Block, name: str, readers: list[_Reader]) -> None:
        """The edges from one value to its readers, and the moves they share: one a state, whoever needs it there."""
        source = self.boundary[block.name, name] if name in block.inputs else _id(block, name)
        stored = name in block.parameters or name in block.buffers
        made = {option: self._made(block, name, option) for option in self.flow.options(source)}
        states: dict[tuple[State, State], None] = {}
        for reader in readers:
            allowed = {}
            for b in self.flow.options(reader.place):
                needed = self._needed(reader, b)
                for a, state in made.items():
                    if _fits(state, needed, stored=stored):
                        allowed[a, b] = (str(state), str(needed))
                        states[state, needed] = None
            self.flow.edge(source, reader.place, reader.key, allowed)
        value, count = self.values[block.name][name], self.graph.counts[block.name]
        seconds = {key: count * self._seconds(value, *key, stored=stored) for key in states}
        price = {(str(a), str(b)): paid for (a, b), paid in seconds.items() if paid}
        self.flow.shared(source, [(r.place, r.key) for r in readers], price)

    def _made(self, block: Block, name: str, option: str) -> State:
        """The state a source option makes the value in."""
        here = _id(block, name)
        return self._rule(here, option).gives(option) if here in self.rules else State.parse(option)

    def _needed(self, reader: _Reader, option: str) -> State:
        if reader.node is None:
            return State.parse(option)
        return self._rule(reader.place, option).needs(option)[reader.index]

    def _seconds(self, value: Tensor, made: State, needed: State, *, stored: bool) -> float:
        """Of moving a value once, forward and backward. A whole parameter read by a cut op sums its gradient."""
        if stored:
            sums = value.grad and (made.kind, needed.kind) == ("R", "Q")
            return self._collective("all_reduce", value) if sums else 0.0
        change = conversion(made, needed)
        if change is None:
            return 0.0
        moves = [change.forward, change.backward] if value.grad else [change.forward]
        return sum(self._collective(move.op, value) for move in moves if not move.local)

    def _collective(self, op: str, value: Tensor) -> float:
        size = float(SIZES[value.dtype])
        for d in value.shape:
            size *= self.prices.tokens if d == TOKENS else d
        return self.prices.move(op, size / self.n if op == "all_to_all" else size)

    def _ties(self) -> None:
        """A parameter that several blocks read lies alike in all of them."""
        first: dict[str, str] = {}
        seen = set()
        for call in self.graph.calls:
            for name in self.graph.blocks[call.block].parameters:
                here = f"{call.block}|{name}"
                there = first.setdefault(call.fqn(name), here)
                if there != here and (there, here) not in seen:
                    seen.add((there, here))
                    self.flow.equal(there, here)

    def _layout(self, block: Block, chosen: Mapping[str, str]) -> Layout:
        cuts = {n.name: chosen[_id(block, n.name)] for n in block.nodes}
        names = (*block.inputs, *(o for o in block.outputs if o not in _losses(block)))
        states = {name: chosen[self.boundary[block.name, name]] for name in names}
        return Layout({k: c for k, c in cuts.items() if c != WHOLE}, {k: s for k, s in states.items() if s != "R"})


def _fits(made: State, needed: State, *, stored: bool) -> bool:
    """Whether a value made in one state can be read in another: parameters and buffers are never moved."""
    if not stored:
        return convertible(made, needed)
    return made == needed if "S" in (made.kind, needed.kind) else needed.kind != "P"


def _losses(block: Block) -> tuple[str, ...]:
    """The loss: it crosses no boundary."""
    return tuple(n.name for n in block.nodes if n.op == "loss")


def _id(block: Block, name: str) -> str:
    return f"{block.name}|{name}"


def _pin_error(pin: str, node: Node, block: Block, found: tuple[Rule, ...], n: int) -> str:
    # Labels that a rule names with # stand for dims it never cuts.
    sizes = {k: v for rule in found for k, v in rule.sizes.items() if not k.startswith("#")}
    where = f"{block.name}.{node.name}"
    if pin not in sizes:
        return f"{where} has no label {pin!r} to cut; it has {', '.join(k for k in sizes)}"
    legal = [str(k) for k in range(1, sizes[pin] + 1) if sizes[pin] % k == 0]
    asked = f"tp={n} cannot cut label {pin} of {where} ({op_of(node).kind})"
    if len(legal) < 2 or divides(n, sizes[pin]):
        return f"{asked}: its rule keeps {pin} whole"
    return f"{asked}: {sizes[pin]} is not divisible; tp may be {', '.join(legal[:-1])} or {legal[-1]}"
