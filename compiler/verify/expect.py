"""What a plan says each rank holds and sends, computed from the plan alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from fourfold.backends.communication.collectives import Axis, convert
from fourfold.backends.lowering.lower import Lowered, Mixer, Region, lower
from fourfold.backends.stage import skeleton
from fourfold.backends.stage.engine import CHUNK
from fourfold.ir.conversion import Move
from fourfold.ir.graph import Graph, Tensor
from fourfold.ir.plan import SIZES, Layout, Plan
from fourfold.ir.rule import State
from fourfold.ir.stages import calls_of, part


@dataclass(frozen=True, slots=True)
class Bytes:
    """What one rank keeps between steps: parameters, their gradients, and AdamW's two moments."""

    parameters: int
    gradients: int
    state: int


@dataclass(frozen=True, slots=True)
class Moves:
    """Collectives of one call on the tensor axis, by kind: when it runs, and when its gradient does."""

    forward: Counter[str]
    backward: Counter[str]


def lowered(plan: Plan, graph: Graph) -> dict[str, Lowered]:
    """The blocks as the plan's ranks run them; the place on the axis changes no count."""
    axis = Axis("", plan.mesh.tp, 0)
    return {n: lower(b, plan.layouts.get(n, Layout()), axis, torch.device("cpu")) for n, b in graph.blocks.items()}


def stored(graph: Graph, blocks: Mapping[str, Lowered]) -> dict[str, State]:
    """How each parameter lies on the tensor axis, by full name."""
    return {call.fqn(name): state for call in graph.calls for name, state in blocks[call.block].stored.items()}


def own_of(graph: Graph, plan: Plan, rank: int) -> Graph:
    """The calls of a rank's stages."""
    return part(graph, calls_of(graph, plan, plan.mesh.place(rank, "pp")))


def expected_bytes(graph: Graph, plan: Plan, states: Mapping[str, State], rank: int) -> Bytes:
    """What `rank` holds of `graph`: each parameter cut along tp, then (ZeRO 1 to 3) rows by its place in the pool."""
    at, size = (plan.mesh.place(rank, "pool"), plan.mesh.pool) if plan.zero else (0, 1)
    whole = {name: _rows_held(value, states[name], plan.mesh.tp, at, size) for name, value in graph.parameters()}
    trained = sum(whole[name] for name, value in graph.parameters() if value.grad)
    return Bytes(sum(whole.values()), trained, 2 * trained)


def _rows_held(value: Tensor, state: State, tp: int, at: int, size: int) -> int:
    """Bytes of one parameter on the rank at place `at` of `size`: rows come in equal chunks, the last ones short."""
    shape = [n // tp if state.kind == "S" and i == state.dim else n for i, n in enumerate(value.shape)]
    chunk = -(-shape[0] // size)
    shape[0] = max(0, min(chunk, shape[0] - at * chunk))
    elements = 1
    for n in shape:
        elements *= n
    return elements * SIZES[value.dtype]


def cut_share(graph: Graph, states: Mapping[str, State], tp: int) -> float:
    """The share of the blocks' weights (those that some dim of can be cut `tp` ways) that tp takes off a rank.

    1 says that every rank holds 1/tp of them; what stays whole counts as nothing taken.
    """
    cut = total = 0
    for call in graph.calls:
        for name, value in graph.blocks[call.block].parameters.items():
            if not call.prefix or len(value.shape) < 2 or not any(n % tp == 0 for n in value.shape):
                continue
            elements = 1
            for n in value.shape:
                elements *= n
            total += elements
            cut += elements if states[call.fqn(name)].kind == "S" else 0
    return cut / total if total else 1.0


def expected_collectives(
    graph: Graph,
    plan: Plan,
    blocks: Mapping[str, Lowered],
    tokens: tuple[int, ...],
    *,
    place: int = 0,
    carried: frozenset[int] = frozenset(),
) -> dict[str, int]:
    """Collectives of one step on the tensor axis: `tokens` are those of the micro-steps of one rank, with padding.
    `place` is that of its stage; `carried` micro-steps go forward once more before, without the call of the loss.

    A recomputed call runs its forward again in backward, all of it (the step is counted with torch's early stop off).
    A parameter whose gradient is partial sums over the axis is summed once for each reduction over the pool.
    """
    if plan.mesh.tp == 1:
        return {}
    found: Counter[str] = Counter()
    own = calls_of(graph, plan, place)
    for step, micro in enumerate(tokens):
        for i in own:
            block = blocks[graph.calls[i].block]
            moves = moves_of(block, micro)
            again = bool(plan.recompute) and plan.recompute[i] != "none" and _replayed(block)
            before = step in carried and i + 1 < len(graph.calls)
            for _ in range(1 + again + before):
                found += moves.forward
            found += moves.backward
    reductions = len(tokens) if plan.zero >= 2 else 1
    partial = {graph.calls[i].fqn(name) for i in own for name in blocks[graph.calls[i].block].partial}
    found["all_reduce"] += reductions * len(partial)
    return {kind: n for kind, n in sorted(found.items()) if n}


def expected_reductions(graph: Graph, plan: Plan, states: Mapping[str, State], micro_steps: int) -> dict[str, int]:
    """Collectives of one step over the pool that carry gradients: one for each unit that is trained.

    ZeRO 0 sums whole gradients once a step, 1 scatters them once, 2 and 3 in each micro-step.
    """
    if plan.mesh.pool == 1:
        return {}
    root = skeleton.build(graph, dict(states), (torch.float32, torch.float32), None)
    owner = dict.fromkeys((name for name, _ in graph.parameters()), -1)
    for index, containers in skeleton.units(root, graph):
        inside = {id(p) for container in containers for p in container.parameters()}
        owner |= {name: index for name, p in root.named_parameters() if id(p) in inside}
    trained = {owner[name] for name, value in graph.parameters() if value.grad}
    kind = "reduce_scatter" if plan.zero else "all_reduce"
    return {kind: len(trained) * (micro_steps if plan.zero >= 2 else 1)}


def moves_of(block: Lowered, tokens: int) -> Moves:
    """The collectives of one call over `tokens` tokens."""
    forward: Counter[str] = Counter()
    backward: Counter[str] = Counter()
    for step in block.steps:
        if isinstance(step, Mixer):
            # Of the loss with the vocabulary cut: a maximum and a sum a chunk (backends/kernels/linear_loss.py).
            forward["all_reduce"] += 2 * -(-tokens // CHUNK) if step.node.op == "loss" and step.cut == "v" else 0
            continue
        for there, back, grad in _conversions(step, block):
            forward[there.op] += not there.local
            backward[back.op] += grad and not back.local
    return Moves(+forward, +backward)


def _conversions(region: Region, block: Lowered) -> Iterator[tuple[Move, Move, bool]]:
    """Each conversion of a region, and whether a gradient comes back through it."""
    values = block.block.values()
    names = iter((*region.inputs, *region.parameters))
    flows: dict[torch.fx.Node, bool] = {}
    for fx in region.function.graph.nodes:
        if fx.op == "placeholder":
            # Behind inputs and parameters come taps: nothing reads them, so no gradient is moved for them.
            name = next(names, None)
            flows[fx] = name is not None and values[name.split(">")[0]].grad
            continue
        flows[fx] = any(flows[source] for source in fx.all_input_nodes) and "detach" not in str(fx.target)
        if fx.target is convert:
            yield Move(*fx.args[1]), Move(*fx.args[2]), flows[fx]


def _replayed(block: Lowered) -> bool:
    """Whether the call's forward is run again when recomputed: its backward runs, and it does not hold the loss."""
    values = block.block.values()
    loss = any(node.op == "loss" for node in block.block.nodes)
    return not loss and any(values[name].grad for name in block.block.outputs)
