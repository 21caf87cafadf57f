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
from fourfold.passes.cutting.boundaries import boundaries
from fourfold.passes.cutting.flow import Flow, Tariff

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
    return Cutter(graph, n, pinned or {})(prices)


@dataclass(frozen=True, slots=True)
class _Reader:
    """Who reads a value: input `index` of a node, or (None) the block's output boundary."""

    place: str
    key: str
    node: Node | None
    index: int


@dataclass(frozen=True, slots=True)
class _Move:
    """What moving a value from one state to another asks of the axis: collectives over its bytes, one a call."""

    value: Tensor
    ops: tuple[str, ...]
    count: int


class Cutter:
    """The program of one graph on one number of ranks: a flow node per op, block input, output and parameter.

    What is legal is worked out once; `cutter(prices)` solves it, as often as asked.
    """

    def __init__(self, graph: Graph, n: int, pinned: Mapping[tuple[str, str], str]) -> None:
        self.graph, self.n, self.pinned = graph, n, pinned
        self.flow = Flow()
        self.boundary = boundaries(graph)
        self.values = {name: block.values() for name, block in graph.blocks.items()}
        self.rules: dict[str, tuple[Rule, ...]] = {}
        self.legal: dict[str, tuple[str, ...]] = {}
        self.moves: list[dict[tuple[str, str], _Move]] = []
        for place in dict.fromkeys(self.boundary.values()):
            self.flow.node(place, self._boundary_options(place))
        for block in graph.blocks.values():
            for node in block.nodes:
                self._node(block, node)
        for block in graph.blocks.values():
            self._stored(block)
            self._edges(block)
        self._ties()

    def __call__(self, prices: Prices) -> tuple[dict[str, Layout], float]:
        """The layout of each block, and the seconds of its micro-step. Raises InfeasibleError."""
        charge = _Charge(prices, self.n)
        nodes: dict[str, dict[str, float]] = {}
        fines: dict[str, float] = {}
        for block in self.graph.blocks.values():
            count = self.graph.counts[block.name]
            for node in block.nodes:
                here = _id(block, node.name)
                legal = self.legal[here]
                options = {c: count * prices.op(node, self._rule(here, c), c, block) for c in legal}
                nodes[here] = options
                self._fine(block, node, max(options.values(), default=0.0), charge, fines)
        nodes |= {place: {"R": fine} for place, fine in fines.items()}
        moves = [{states: charge.moved(move) for states, move in table.items()} for table in self.moves]
        chosen, seconds = self.flow.solve(Tariff(nodes, moves))
        layouts = {name: self._layout(block, chosen) for name, block in self.graph.blocks.items()}
        return layouts, seconds - sum(fine for place, fine in fines.items() if chosen[place] == "R")

    def _boundary_options(self, place: str) -> tuple[str, ...]:
        """States a value may cross blocks in: whole, or cut along any dim the axis divides; graph inputs are whole."""
        block, name = next(key for key, at in self.boundary.items() if at == place)
        return ("R",) if place in INPUTS else ("R", *self._cuts(self.values[block][name]))

    def _cuts(self, value: Tensor) -> tuple[str, ...]:
        return tuple(f"S{i}" for i, size in enumerate(value.shape) if divides(self.n, size))

    def _node(self, block: Block, node: Node) -> None:
        here = _id(block, node.name)
        self.rules[here] = found = rules(node, self.values[block.name])
        every = dict.fromkeys(c for rule in found for c in rule.cuts(self.n))
        # Each rank draws its own mask, so what is dropped must be cut.
        legal = tuple(c for c in every if node.op != "dropout" or c not in (WHOLE, PARTIAL))
        pin = self.pinned.get((block.name, node.name))
        if pin is not None and pin not in legal:
            raise UsageError(_pin_error(pin, node, block, found, self.n))
        self.legal[here] = legal
        self.flow.node(here, legal if pin is None else (pin,))

    def _fine(self, block: Block, node: Node, whole: float, charge: _Charge, fines: dict[str, float]) -> None:
        """Adds what reading them whole may save to the fines of a node's matrices that could be cut."""
        values, count = self.values[block.name], self.graph.counts[block.name]
        matrices = [r for r in node.refs() if r in block.parameters and len(values[r].shape) > 1]
        if matrices:
            moved = sum(2.0 * charge.collective("all_reduce", values[name]) for name in (node.name, *node.refs()))
            for name in dict.fromkeys(matrices):
                place = _id(block, name)
                if self._cuts(values[name]):
                    fines[place] = fines.get(place, 0.0) + FINE * (whole + count * moved)

    def _rule(self, node: str, label: str) -> Rule:
        found = self.rules[node]
        return next((rule for rule in found if label in rule.sizes), found[0])

    def _stored(self, block: Block) -> None:
        """States of parameters and buffers: a matrix kept whole pays a fine, buffers are whole."""
        for name, value in block.parameters.items():
            self.flow.node(_id(block, name), ("R", *self._cuts(value)))
        for name in block.buffers:
            self.flow.node(_id(block, name), ("R",))

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
        made = {option: self._made(block, name, option) for option in self.flow.nodes[source]}
        states: dict[tuple[State, State], None] = {}
        for reader in readers:
            allowed = {}
            for b in self.flow.nodes[reader.place]:
                needed = self._needed(reader, b)
                for a, state in made.items():
                    if _fits(state, needed, stored=stored):
                        allowed[a, b] = (str(state), str(needed))
                        states[state, needed] = None
            self.flow.edge(source, reader.place, reader.key, allowed)
        value, count = self.values[block.name][name], self.graph.counts[block.name]
        ops = {key: _collectives(value, *key, stored=stored) for key in states}
        table = {(str(a), str(b)): _Move(value, found, count) for (a, b), found in ops.items() if found}
        if table:
            self.moves.append(table)
            self.flow.shared(source, [(r.place, r.key) for r in readers], table)

    def _made(self, block: Block, name: str, option: str) -> State:
        """The state a source option makes the value in."""
        here = _id(block, name)
        return self._rule(here, option).gives(option) if here in self.rules else State.parse(option)

    def _needed(self, reader: _Reader, option: str) -> State:
        if reader.node is None:
            return State.parse(option)
        return self._rule(reader.place, option).needs(option)[reader.index]

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


@dataclass(frozen=True, slots=True)
class _Charge:
    """Seconds of collectives over `n` ranks, under some prices."""

    prices: Prices
    n: int

    def moved(self, move: _Move) -> float:
        """Of one move, in every call of its block."""
        return move.count * sum(self.collective(op, move.value) for op in move.ops)

    def collective(self, op: str, value: Tensor) -> float:
        """Of one collective over a value."""
        size = float(SIZES[value.dtype])
        for d in value.shape:
            size *= self.prices.tokens if d == TOKENS else d
        return self.prices.move(op, size / self.n if op == "all_to_all" else size)


def _collectives(value: Tensor, made: State, needed: State, *, stored: bool) -> tuple[str, ...]:
    """Of moving a value once, forward and backward. A whole parameter read by a cut op sums its gradient."""
    if stored:
        sums = value.grad and (made.kind, needed.kind) == ("R", "Q")
        return ("all_reduce",) if sums else ()
    change = conversion(made, needed)
    if change is None:
        return ()
    moves = [change.forward, change.backward] if value.grad else [change.forward]
    return tuple(move.op for move in moves if not move.local)


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
    sizes = {k: v for rule in found for k, v in rule.sizes.items()}
    where = f"{block.name}.{node.name}"
    if pin not in sizes:
        return f"{where} has no label {pin!r} to cut; it has {', '.join(k for k in sizes)}"
    legal = [str(k) for k in range(1, sizes[pin] + 1) if sizes[pin] % k == 0]
    asked = f"tp={n} cannot cut label {pin} of {where} ({op_of(node).kind})"
    if len(legal) < 2 or divides(n, sizes[pin]):
        return f"{asked}: its rule keeps {pin} whole"
    return f"{asked}: {sizes[pin]} is not divisible; tp may be {', '.join(legal[:-1])} or {legal[-1]}"
