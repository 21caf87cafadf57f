"""A block class with its cuts becomes steps: compiled regions of token-wise work, and the mixers between them.

before: one Block and one Layout.  after: Region - Mixer - Region, each value in the state its reader needs.
Sums are joined where they are made, whole copies are gathered where they are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fourfold.backends.communication.collectives import Axis, conversion_words, convert
from fourfold.backends.lowering.emit import Local, emit, local_shape
from fourfold.backends.lowering.late import Tap
from fourfold.ir.conversion import conversion
from fourfold.ir.graph import Block, Node
from fourfold.ir.plan import Layout
from fourfold.ir.rule import WHOLE, Q, State
from fourfold.ir.states import deferrable, states_of, stored

MIXERS = ("attention", "loss")


@dataclass(frozen=True, slots=True)
class Region:
    """A pure function of tensors, `function(*inputs, *parameters, *taps) -> outputs`: one GraphModule for all calls.

    Taps may be left out: two for each of `taps`, where the gradients of those weights shall wait.

    The outputs in `heads`, [1, H, T, E] to the graph, leave the function as contiguous [1, T, H, E]: attention reads
    them so, and a compiler that takes gradients to be contiguous need not turn them around.
    """

    function: torch.fx.GraphModule
    inputs: tuple[str, ...]
    parameters: tuple[str, ...]
    outputs: tuple[str, ...]
    heads: frozenset[str] = frozenset()
    taps: tuple[Tap, ...] = ()


@dataclass(frozen=True, slots=True)
class Mixer:
    """Attention or the loss, run between regions; `inputs` are value names already in the needed states."""

    node: Node
    inputs: tuple[str, ...]
    cut: str


@dataclass(frozen=True, slots=True)
class Lowered:
    """The steps of one block class, and how each of its parameters is stored and its gradient joined."""

    block: Block
    steps: tuple[Region | Mixer, ...]
    stored: Mapping[str, State]
    partial: frozenset[str]
    outputs: tuple[str, ...]


def lower(block: Block, layout: Layout, axis: Axis, device: torch.device, *, training: bool = True) -> Lowered:
    """The steps of `block` under `layout` on this rank's place of the tensor axis; dropout acts in training only."""
    return _Lowering(block, layout, axis, device, training).run()


class _Lowering:
    """Builds the regions of one block class, one fx graph each."""

    def __init__(self, block: Block, layout: Layout, axis: Axis, device: torch.device, training: bool) -> None:
        self.block, self.layout, self.axis, self.device, self.training = block, layout, axis, device, training
        self.values = block.values()
        self.made, self.needs = states_of(block, layout)
        self.stage = self._stages()
        self.losses = {node.name for node in block.nodes if node.op == "loss"}
        self.partial = frozenset(self._partial_parameters())
        self.deferrable = frozenset(deferrable(block, self.needs))
        self.heads = frozenset(i for n in block.nodes if n.op == "attention" for i in self._mixer(n).inputs)

    def run(self) -> Lowered:
        """Regions and mixers in order."""
        steps: list[Region | Mixer] = []
        last = max(self.stage.values(), default=0)
        wanted = self._wanted()
        for k in range(last + 1):
            region = self._region(k, wanted)
            if region is not None:
                steps.append(region)
            steps += [self._mixer(n) for n in self.block.nodes if n.op in MIXERS and self.stage[n.name] == k + 1]
        outputs = tuple(self._key(name, self._output_state(name)) for name in self.block.outputs)
        places = {p: stored(self.block, p, self.needs) for p in self.block.parameters}
        return Lowered(self.block, tuple(steps), places, self.partial, outputs)

    def _stages(self) -> dict[str, int]:
        """Region index of each node; a mixer and its readers come one later than what it reads."""
        stage = dict.fromkeys((*self.block.inputs, *self.block.parameters, *self.block.buffers), 0)
        for node in self.block.nodes:
            stage[node.name] = max((stage[r] for r in node.refs()), default=0) + (node.op in MIXERS)
        return {node.name: stage[node.name] for node in self.block.nodes}

    def _key(self, name: str, state: State) -> str:
        """The name of a value in one state: its own where it was made so, or where no gradient tells R from Q."""
        if name in self.block.parameters:
            return f"{name}>{state}" if self.mixed(name, state) else name
        made = self.made.get(name)
        if made is None or made == state or (made.kind == "R" and state == Q and not self.values[name].grad):
            return name
        return f"{name}>{state}"

    def mixed(self, name: str, state: State) -> bool:
        """Whether a cut op reads a parameter that a whole op reads too: only this use's gradient is partial sums."""
        return state == Q and name not in self.partial and self.values[name].grad

    def tap(self, node: Node) -> Tap:
        """What catches the pair of a linear layer whose weight may wait."""
        x, weight = node.refs()
        taken = self.values[x].shape, self.needs[node.name][0]
        return Tap(weight, taken, (node.value.shape, self.made[node.name]))

    def _output_state(self, name: str) -> State:
        """What the plan says; the loss stays as it was made: the program joins it."""
        if name in self.losses:
            return self.made[name]
        return State.parse(self.layout.states.get(name, "R"))

    def _users(self) -> dict[str, list[tuple[Node, State]]]:
        found: dict[str, list[tuple[Node, State]]] = {}
        for node in self.block.nodes:
            for name, state in zip(node.refs(), self.needs[node.name], strict=True):
                found.setdefault(name, []).append((node, state))
        return found

    def _partial_parameters(self) -> list[str]:
        """Replicated parameters that only cut ops read: their gradients are partial sums over the axis."""
        users = self._users()
        trainable = [p for p, value in self.block.parameters.items() if value.grad]
        return [p for p in trainable if {s for _, s in users.get(p, [])} == {Q}]

    def _wanted(self) -> dict[int, list[tuple[str, State]]]:
        """For each stage, the (value, state) pairs that stage must make available to later ones."""
        wanted: dict[int, list[tuple[str, State]]] = {}
        for node in self.block.nodes:
            for name, state in zip(node.refs(), self.needs[node.name], strict=True):
                reader = self.stage[node.name] - (node.op in MIXERS)
                if name in self.block.parameters or name in self.block.buffers:
                    if node.op in MIXERS and self._key(name, state) != name:
                        wanted.setdefault(reader, []).append((name, state))
                    continue
                home = self._home(name, state, reader)
                if self.stage.get(name, home) < home:
                    # It is converted where it is read, and handed there as it was made.
                    wanted.setdefault(self.stage[name], []).append((name, self.made[name]))
                if home < reader or node.op in MIXERS:
                    wanted.setdefault(home, []).append((name, state))
        for name in self.block.outputs:
            state = self._output_state(name)
            wanted.setdefault(self._home(name, state, self.stage[name]), []).append((name, state))
        return wanted

    def _home(self, name: str, state: State, reader: int) -> int:
        """The region that converts: where sums are made, else where the value is read."""
        maker = self.stage.get(name, 0)
        return maker if self._key(name, state) == name or self.made[name].kind == "P" else reader

    def _region(self, k: int, wanted: dict[int, list[tuple[str, State]]]) -> Region | None:
        builder = _RegionBuilder(self)
        for node in self.block.nodes:
            if self.stage[node.name] == k and node.op not in MIXERS:
                builder.node(node)
        outputs = []
        for name, state in dict.fromkeys(wanted.get(k, [])):
            key = self._key(name, state)
            if builder.provides(name, key):
                builder.env[key] = builder.value(name, state)
                outputs.append(key)
        return builder.finish(tuple(outputs))

    def _mixer(self, node: Node) -> Mixer:
        names = [self._key(r, s) for r, s in zip(node.refs(), self.needs[node.name], strict=True)]
        return Mixer(node, tuple(names), self.layout.cuts.get(node.name, WHOLE))


class _RegionBuilder:
    """One region under construction: its graph, and what it has to be given."""

    def __init__(self, lowering: _Lowering) -> None:
        self.low = lowering
        self.graph = torch.fx.Graph()
        self.env: dict[str, Any] = {"device": lowering.device}
        self.inputs: dict[str, Any] = {}
        self.parameters: dict[str, Any] = {}
        self.taps: dict[Any, Tap] = {}

    def node(self, node: Node) -> None:
        """Adds one node in its cut."""
        low = self.low
        cut = low.layout.cuts.get(node.name, WHOLE)
        env = {"device": low.device}
        for name, state in zip(node.refs(), low.needs[node.name], strict=True):
            env[name] = self.value(name, state)
        if node.op == "dropout" and not low.training:
            self.env[node.name] = env[node.refs()[0]]
            return
        gives = low.made[node.name]
        local = Local(
            local_shape(node.value.shape, gives, low.axis.size),
            gives if cut != WHOLE else None,
            low.axis.rank,
            low.axis.size,
        )
        taps = self._taps(node) if node.name in low.deferrable else ()
        self.env[node.name] = emit(self.graph, node, env, local, taps)

    def _taps(self, node: Node) -> tuple[Any, Any]:
        """Two last arguments of the region, which nothing need be given for."""
        both = tuple(self.graph.placeholder(f"t{len(self.taps)}{end}", default_value=None) for end in "xy")
        self.taps[both] = self.low.tap(node)
        return both[0], both[1]

    def value(self, name: str, state: State) -> Any:
        """The fx node of a value in `state`, taken in or converted when it is not there yet."""
        low = self.low
        if name in low.block.parameters or name in low.block.buffers:
            return self._parameter(name, state)
        key = low._key(name, state)
        if key in self.env:
            return self.env[key]
        if name in self.env:
            return self._converted(name, key, state)
        if key == name or low.made[name].kind == "P":
            return self._take(key)
        self._take(name)
        return self._converted(name, key, state)

    def provides(self, name: str, key: str) -> bool:
        """Whether this region (and not a mixer or the caller) makes the value available under `key`."""
        return key != name or (name in self.env and name not in self.inputs)

    def finish(self, outputs: tuple[str, ...]) -> Region | None:
        """The region, or None when it would be empty."""
        if not outputs:
            return None
        names = (*self.inputs, *self.parameters)
        graph = torch.fx.Graph()
        copied = {
            old: graph.placeholder(f"a{i}") for i, old in enumerate((*self.inputs.values(), *self.parameters.values()))
        }
        copied |= {old: graph.placeholder(old.name, default_value=None) for both in self.taps for old in both}
        for fx in self.graph.nodes:
            if fx not in copied:
                copied[fx] = graph.node_copy(fx, lambda n: copied[n])
        heads = self.low.heads.intersection(outputs)
        graph.output(
            tuple(_token_major(graph, copied[self.env[o]]) if o in heads else copied[self.env[o]] for o in outputs)
        )
        graph.eliminate_dead_code()
        assert len(names) == len(set(names))
        module = torch.fx.GraphModule(torch.nn.Module(), graph)
        return Region(module, tuple(self.inputs), tuple(self.parameters), outputs, heads, tuple(self.taps.values()))

    def _take(self, key: str) -> Any:
        if key not in self.inputs:
            self.inputs[key] = self.env[key] = self.graph.placeholder(f"x{len(self.inputs)}")
        return self.env[key]

    def _parameter(self, name: str, state: State) -> Any:
        if name not in self.parameters:
            self.parameters[name] = self.graph.placeholder(f"p{len(self.parameters)}")
        fx = self.parameters[name]
        return self._move(fx, State("R"), Q) if self.low.mixed(name, state) else fx

    def _converted(self, name: str, key: str, state: State) -> Any:
        self.env[key] = self._move(self.env[name], self.low.made[name], state)
        return self.env[key]

    def _move(self, fx: Any, made: State, needed: State) -> Any:
        change = conversion(made, needed)
        assert change is not None, f"a value in {made} needs no move to {needed}"
        return self.graph.call_function(convert, (fx, *conversion_words(change, self.low.axis)))


def _token_major(graph: torch.fx.Graph, fx: Any) -> Any:
    return graph.call_method("contiguous", (graph.call_function(torch.transpose, (fx, 1, 2)),))
