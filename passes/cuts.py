"""One cut per op on the tensor axis, by a flow linear program over the folded blocks.

Variables: x[v, c] in {0, 1}, op v uses cut c; e[v, w, c, d], the edge v -> w joins them; m[v, a, b], value v made in
state a is moved to state b (once, whoever reads it).  Minimise sum t[v, c] x + sum t[move] m, each times how often the
block runs, subject to sum_c x = 1, sum_d e = x[v, c], sum_c e = x[w, d], m[v, a, b] >= e of every reader.
A repeated block's outputs and inputs share one state, so its cost is exact for any depth. The relaxation is nearly
always integral; HiGHS branches where it is not (AutoParallel's flow form; Alpa, arXiv 2201.12023, section 4).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fourfold.hardware.errors import UsageError
from fourfold.ir.conversion import conversion, convertible
from fourfold.ir.graph import INPUTS, TOKENS, Block, Graph, Node
from fourfold.ir.ops import op_of, rules
from fourfold.ir.plan import SIZES, Layout
from fourfold.ir.rule import PARTIAL, WHOLE, Rule, State, divides
from fourfold.passes.flow import Flow

OpTime = Callable[[Node, Rule, str, Block], float]
MoveTime = Callable[[str, float], float]

UNCUT = 10.0
"""Seconds that keeping a whole copy of a parameter which could be cut is charged: more than any real plan costs, so
that it happens only where nothing else is legal. Cutting tokens instead of weights is what the pool is for."""


@dataclass(frozen=True, slots=True)
class Prices:
    """Seconds of one op in one cut (forward and backward), and of one collective on the axis by bytes."""

    op: OpTime
    move: MoveTime
    tokens: int


@dataclass(frozen=True, slots=True)
class CutTensors:
    """Decides how every op of every block is cut over `n` tensor ranks.

    Given: the graph, prices of ops and collectives, pinned cuts (block, node) -> cut. Minimises: seconds of one
    micro-step's forward and backward. Subject to: the rules; a weight that can be cut is cut; tied weights alike.
    Source: module docstring.
    """

    n: int
    prices: Prices
    pinned: Mapping[tuple[str, str], str] = field(default_factory=dict)

    def __call__(self, graph: Graph) -> tuple[dict[str, Layout], float]:
        """The layout of each block, and the seconds of one micro-step."""
        if self.n == 1:
            return {name: Layout() for name in graph.blocks}, 0.0
        return _Problem(graph, self).solve()


class _Problem:
    """The program under construction: one flow node per op, block input, output boundary and parameter."""

    def __init__(self, graph: Graph, settings: CutTensors) -> None:
        self.graph, self.settings, self.n = graph, settings, settings.n
        self.flow = Flow()
        self.bound: dict[tuple[str, str], tuple[Rule, ...]] = {}
        self.boundary = _boundaries(graph)

    def solve(self) -> tuple[dict[str, Layout], float]:
        """Builds, solves, reads the layouts back."""
        for place in dict.fromkeys(self.boundary.values()):
            self.flow.node(place, self._boundary_options(place))
        for block in self.graph.blocks.values():
            for name in block.buffers:
                self.flow.node(_id(block, name), {"R": 0.0})
        for block in self.graph.blocks.values():
            self._block(block)
        self._ties()
        chosen, seconds = self.flow.solve()
        return {name: self._layout(block, chosen) for name, block in self.graph.blocks.items()}, seconds

    def _boundary_options(self, place: str) -> dict[str, float]:
        """States a value may cross blocks in: whole, or cut along any dim the axis divides; graph inputs are whole."""
        value = self._boundary_value(place)
        options = {"R": 0.0}
        if place not in INPUTS:
            options |= {f"S{i}": 0.0 for i, size in enumerate(value) if divides(self.n, size)}
        return options

    def _boundary_value(self, place: str) -> tuple[int, ...]:
        block, name = next(key for key, at in self.boundary.items() if at == place)
        return self.graph.blocks[block].value(name).shape

    def _block(self, block: Block) -> None:
        count = self.graph.counts[block.name]
        for parameter in block.parameters:
            self._parameter(block, parameter)
        for node in block.nodes:
            self._node(block, node, count)
        values = block.values()
        readers: dict[str, list[tuple[str, int, Node]]] = {}
        for node in block.nodes:
            for i, name in enumerate(node.refs()):
                readers.setdefault(name, []).append((_id(block, node.name), i, node))
        for name in values:
            self._edges(block, name, readers.get(name, []), count)

    def _node(self, block: Block, node: Node, count: int) -> None:
        values = block.values()
        self.bound[block.name, node.name] = found = rules(node, values)
        options = {}
        for cut in dict.fromkeys(c for rule in found for c in rule.cuts(self.n)):
            if node.op == "dropout" and cut in (WHOLE, PARTIAL):
                # Each rank draws its own mask, so what is dropped must be cut.
                continue
            rule = self._rule(block, node, cut)
            options[cut] = count * self.settings.prices.op(node, rule, cut, block)
        pin = self.settings.pinned.get((block.name, node.name))
        if pin is not None:
            if pin not in options:
                raise UsageError(_pin_error(pin, node, block, found, self.n))
            options = {pin: options[pin]}
        self.flow.node(_id(block, node.name), options)

    def _rule(self, block: Block, node: Node, cut: str) -> Rule:
        found = self.bound[block.name, node.name]
        return next((rule for rule in found if cut in rule.sizes), found[0])

    def _parameter(self, block: Block, name: str) -> None:
        """States a parameter is stored in; whole costs a fine when its block could cut it."""
        shape = block.parameters[name].shape
        cuts = {f"S{i}": 0.0 for i, size in enumerate(shape) if divides(self.n, size)}
        self.flow.node(_id(block, name), {"R": UNCUT if len(shape) > 1 else 0.0, **cuts})

    def _edges(self, block: Block, name: str, readers: list[tuple[str, int, Node]], count: int) -> None:
        source = self._source(block, name)
        crosses = name in block.outputs and name not in _losses(block)
        outputs: list[tuple[str, int, Node | None]] = [(self.boundary[block.name, name], -1, None)] if crosses else []
        targets = [*readers, *outputs]
        for target, index, node in targets:
            self._edge(block, name, source, target, index, node)
        self._shared_moves(block, name, source, targets, count)

    def _source(self, block: Block, name: str) -> str:
        return self.boundary[block.name, name] if name in block.inputs else _id(block, name)

    def _made(self, block: Block, name: str, option: str) -> State:
        """The state a source option makes the value in."""
        if name in block.inputs or name in block.parameters or name in block.buffers:
            return State.parse(option)
        node = next(n for n in block.nodes if n.name == name)
        return self._rule(block, node, option).gives(option)

    def _needed(self, block: Block, node: Node | None, index: int, option: str) -> State:
        return State.parse(option) if node is None else self._rule(block, node, option).needs(option)[index]

    def _edge(self, block: Block, name: str, source: str, target: str, index: int, node: Node | None) -> None:
        stored = name in block.parameters or name in block.buffers
        allowed = {}
        for a in self.flow.options(source):
            for b in self.flow.options(target):
                made, needed = self._made(block, name, a), self._needed(block, node, index, b)
                if stored:
                    fits = made == needed if needed.kind == "S" or made.kind == "S" else needed.kind != "P"
                else:
                    fits = convertible(made, needed)
                if fits:
                    allowed[a, b] = (str(made), str(needed))
        self.flow.edge(source, target, f"{name}/{index}", allowed)

    def _shared_moves(self, block: Block, name: str, source: str, targets: list[tuple[str, int, Node | None]], count: int) -> None:
        """A value is moved to a state once, whoever needs it there."""
        value = block.value(name)
        size = SIZES[value.dtype]
        for d in value.shape:
            size *= self.settings.prices.tokens if d == TOKENS else d
        stored = name in block.parameters or name in block.buffers
        price = {}
        for made, needed in self.flow.pairs(source, [(t, f"{name}/{i}") for t, i, _ in targets]):
            seconds = self._parameter_move(value.grad, made, needed, size) if stored else self._move(value.grad, made, needed, size)
            if seconds:
                price[made, needed] = count * seconds
        self.flow.shared(source, [(t, f"{name}/{i}") for t, i, _ in targets], price)

    def _parameter_move(self, grad: bool, made: str, needed: str, size: int) -> float:
        """A whole parameter read by a cut op: its gradient is summed over the axis."""
        return self.settings.prices.move("all_reduce", size) if grad and made == "R" and needed == "Q" else 0.0

    def _move(self, grad: bool, made: str, needed: str, size: int) -> float:
        change = conversion(State.parse(made), State.parse(needed))
        if change is None:
            return 0.0
        moves = [change.forward, change.backward] if grad else [change.forward]
        return sum(self._seconds(m.op, size) for m in moves if not m.local)

    def _seconds(self, op: str, size: int) -> float:
        return self.settings.prices.move(op, size / self.n if op == "all_to_all" else size)

    def _ties(self) -> None:
        """A parameter that several blocks read lies alike in all of them."""
        first: dict[str, str] = {}
        seen = set()
        for call in self.graph.calls:
            for name in self.graph.blocks[call.block].parameters:
                full = call.fqn(name)
                here = f"{call.block}|{name}"
                if first.setdefault(full, here) != here and (first[full], here) not in seen:
                    seen.add((first[full], here))
                    self.flow.equal(first[full], here)

    def _layout(self, block: Block, chosen: Mapping[str, str]) -> Layout:
        cuts = {n.name: chosen[_id(block, n.name)] for n in block.nodes}
        names = (*block.inputs, *(o for o in block.outputs if o not in _losses(block)))
        states = {name: chosen[self.boundary[block.name, name]] for name in names}
        return Layout({k: c for k, c in cuts.items() if c != WHOLE}, {k: s for k, s in states.items() if s != "R"})


def _losses(block: Block) -> tuple[str, ...]:
    """The loss: it crosses no boundary."""
    return tuple(n.name for n in block.nodes if n.op == "loss")


def _id(block: Block, name: str) -> str:
    return f"{block.name}|{name}"


def _boundaries(graph: Graph) -> dict[tuple[str, str], str]:
    """A common place name for every block input and output that some call connects; graph inputs keep theirs."""
    parent: dict[str, str] = {}

    def find(x: str) -> str:
        while parent.setdefault(x, x) != x:
            x = parent[x]
        return x

    for call in graph.calls:
        block = graph.blocks[call.block]
        for name, source in zip(block.inputs, call.sources, strict=True):
            here = find(f"{block.name}|{name}|in")
            if source.call < 0:
                parent[here] = INPUTS[source.output]
                parent.setdefault(INPUTS[source.output], INPUTS[source.output])
                continue
            other = graph.blocks[graph.calls[source.call].block]
            there = find(f"{other.name}|{other.outputs[source.output]}|out")
            if here != there:
                parent[here] = there
    found = {}
    for block in graph.blocks.values():
        for name in block.inputs:
            found[block.name, name] = find(f"{block.name}|{name}|in")
        for name in block.outputs:
            found[block.name, name] = find(f"{block.name}|{name}|out")
    return found


def _pin_error(pin: str, node: Node, block: Block, found: tuple[Rule, ...], n: int) -> str:
    sizes = {k: v for rule in found for k, v in rule.sizes.items()}
    if pin not in sizes:
        return f"{block.name}.{node.name} has no label {pin!r} to cut; it has {', '.join(k for k in sizes)}"
    legal = [k for k in range(1, sizes[pin] + 1) if sizes[pin] % k == 0]
    return (
        f"tp={n} cannot cut label {pin} of {block.name}.{node.name} ({op_of(node).kind}): {sizes[pin]} is not divisible; "
        f"tp may be {', '.join(map(str, legal[:-1]))} or {legal[-1]}"
    )
