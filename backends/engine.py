"""Runs the calls of a graph for one micro-step: skeleton containers around runners, recompute as the plan says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fourfold.backends import compat, skeleton
from fourfold.backends.batching import Packed
from fourfold.backends.collectives import all_gather
from fourfold.backends.emit import suffix_function
from fourfold.backends.kernels.documents import Documents
from fourfold.backends.kernels.linear_loss import Vocabulary, linear_cross_entropy
from fourfold.backends.kernels.user_loss import Loss, chunked_loss, counted
from fourfold.backends.lower import Lowered, Mixer, Region, lower
from fourfold.backends.ranks import Ranks
from fourfold.backends.runner import Held, Runner
from fourfold.backends.sequence import Group
from fourfold.backends.sequences import limits_of
from fourfold.ir.conversion import Move
from fourfold.ir.graph import Block, Graph
from fourfold.ir.plan import Layout, Plan
from fourfold.ir.rule import State
from fourfold.ir.sequence import METHODS
from fourfold.ir.sequence.tokens import Shard

CHUNK = 2048
"""Tokens whose logits exist at once."""


class Engine:
    """The lowered blocks of one plan on one rank, and where their parameters live."""

    def __init__(self, plan: Plan, graph: Graph, ranks: Ranks, *, compiled: bool, loss: Loss | None = None) -> None:
        self.plan, self.graph, self.ranks, self.user_loss = plan, graph, ranks, loss
        self.scale = 1.0
        self.suffix = suffix_function(graph.suffix) if graph.suffix else None
        self.lowered = {name: self._lowered(block, training=True) for name, block in graph.blocks.items()}
        self.runners = {name: self._runner(low, compiled) for name, low in self.lowered.items()}
        self.evaluating = self.runners | {
            name: self._runner(self._lowered(block, training=False), compiled)
            for name, block in graph.blocks.items()
            if _draws(block)
        }
        self.stored = self._stored()
        self.slots: list[dict[str, skeleton.Slot]] = []
        self.units: dict[int, tuple[skeleton.Container, ...]] = {}

    @property
    def loss_is_partial(self) -> bool:
        """Whether each tensor rank holds only its tokens' loss."""
        last = self.lowered[self.graph.calls[-1].block]
        return any(isinstance(s, Mixer) and s.node.op == "loss" and s.cut == "t" for s in last.steps)

    @property
    def draws(self) -> bool:
        """Whether training draws random numbers."""
        return any(_draws(block) for block in self.graph.blocks.values())

    def counted(self, packed: Packed) -> Tensor:
        """What the user's loss counts in a micro-step."""
        assert self.user_loss is not None
        rows, dtype = limits_of(self.graph).labels, getattr(torch, self.plan.precision.compute)
        assert rows is not None, "a graph ends in a loss"
        return counted(packed.targets, packed.weights, self.user_loss, chunk=CHUNK, vocabulary=rows, dtype=dtype)

    def place(self, root: skeleton.Container) -> None:
        """Finds the parameters of every call in the tree."""
        calls = self.graph.calls
        self.slots = [skeleton.slots(root, self.graph, c, self.lowered[c.block].partial) for c in calls]
        self.units = dict(skeleton.units(root, self.graph))

    def loss(
        self, root: Any, packed: Packed, *, scale: float, training: bool, shards: tuple[Shard, ...] = ()
    ) -> Tensor:
        """This rank's share of the loss of one micro-step, times `scale`; `shards` where a group shares documents."""
        self.scale = scale
        documents = self._group(shards) if shards else Documents.of(packed.lengths, self.ranks.device)
        given = (packed.tokens, packed.positions, packed.targets, packed.weights)
        found: Tensor = root(lambda: self._calls(given, documents, training))
        return found

    def _calls(self, given: tuple[Tensor, ...], documents: Held, training: bool) -> Tensor:
        made: list[tuple[Tensor, ...]] = []
        for i, call in enumerate(self.graph.calls):
            inputs = tuple(given[s.output] if s.call < 0 else made[s.call][s.output] for s in call.sources)
            made.append(self._call(i, inputs, documents, training))
        return made[-1][0]

    def _call(self, index: int, inputs: tuple[Tensor, ...], documents: Held, training: bool) -> tuple[Tensor, ...]:
        call = self.graph.calls[index]
        runner, slots = (self.runners if training else self.evaluating)[call.block], self.slots[index]

        how = self.plan.recompute[index] if training and self.plan.recompute else "none"

        def parameters() -> dict[str, Tensor]:
            return {name: slot.local() for name, slot in slots.items()}

        def run(*tensors: Tensor) -> tuple[Tensor, ...]:
            return runner.run(tensors, parameters, documents, recompute=how)

        found: tuple[Tensor, ...] = _nested(self.units.get(index, ()), run)(*inputs)
        return found

    def _group(self, shards: tuple[Shard, ...]) -> Group:
        how = self.plan.sharing
        return Group(self.ranks.sequence, shards, METHODS[how.method], how.ulysses, getattr(torch, how.travel))

    def _lowered(self, block: Block, *, training: bool) -> Lowered:
        layout = self.plan.layouts.get(block.name, Layout())
        return lower(block, layout, self.ranks.tensor, self.ranks.device, training=training)

    def _runner(self, low: Lowered, compiled: bool) -> Runner:
        """The block class with its regions compiled where they shall be."""
        random = _draws(low.block)
        regions = tuple(s.function if isinstance(s, Region) else None for s in low.steps)
        if not compiled:
            return Runner(low, regions, self.ranks.tensor, self._loss, random=random)
        dynamic = False if len(self.plan.workload.lengths) == 1 else None
        functions = tuple(
            None if f is None else torch.compile(f, backend=compat.lean, dynamic=dynamic) for f in regions
        )
        # Random numbers drawn in a backward of its own would be others than the forward's.
        last = None if random else regions[-1]
        frugal = None if last is None else torch.compile(last, backend=compat.frugal, dynamic=dynamic)
        return Runner(low, functions, self.ranks.tensor, self._loss, frugal, random)

    def _stored(self) -> dict[str, State]:
        """How each parameter lies on the tensor axis, by full name; calls that share one must agree."""
        found: dict[str, State] = {}
        for call in self.graph.calls:
            for name, state in self.lowered[call.block].stored.items():
                full = call.fqn(name)
                assert found.setdefault(full, state) == state, f"{full} is cut in two ways"
        return found

    def _loss(self, step: Mixer, inputs: tuple[Tensor, ...]) -> Tensor:
        x_1TD, weight, targets_T, weights_T, *parameters = inputs
        transposed = bool(dict(step.node.kwargs).get("transposed"))
        weight_VD = weight.t() if transposed else weight
        rows = weight_VD.shape[0]
        vocabulary = Vocabulary(0, rows)
        if step.cut == "v":
            start = self.ranks.tensor.rank * rows
            vocabulary = Vocabulary(start, start + rows, self._reduce, self._gather)
        how: dict[str, Any] = {
            "scale": self.scale,
            "chunk": CHUNK,
            "vocab": vocabulary,
            "suffix": self.suffix,
            "parameters": tuple(parameters),
        }
        if self.user_loss is not None:
            return chunked_loss(x_1TD[0], weight_VD, targets_T, weights_T, self.user_loss, **how)[0]
        return linear_cross_entropy(x_1TD[0], weight_VD, targets_T, weights_T, **how)

    def _reduce(self, tensor: Tensor, how: str) -> None:
        kind = dist.ReduceOp.MAX if how == "max" else dist.ReduceOp.SUM
        dist.all_reduce(tensor, kind, group=self.ranks.mesh["tp"].get_group())

    def _gather(self, scores_CV: Tensor) -> Tensor:
        axis = self.ranks.tensor
        return all_gather(scores_CV, Move("all_gather", 1), axis)


def _draws(block: Block) -> bool:
    """Whether training draws random numbers in the block."""
    return any(node.op == "dropout" for node in block.nodes)


def _nested(containers: tuple[skeleton.Container, ...], run: Callable[..., Any]) -> Callable[..., Any]:
    """`run` inside every container of a unit, so that its parameters are gathered before and sharded after."""
    for container in reversed(containers):
        run = _inside(container, run)
    return run


def _inside(container: skeleton.Container, run: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *tensors: container(run, *tensors)
