"""Runs the calls of a graph for one micro-step: skeleton containers around runners, recompute as the plan says."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from fourfold.backends import compat
from fourfold.backends.attention.attention import Attention, Held
from fourfold.backends.attention.sequence import Chain
from fourfold.backends.attention.teams import Queues, attention_of, node_size
from fourfold.backends.batch.batching import Packed
from fourfold.backends.batch.placing import Turn
from fourfold.backends.batch.sequences import limits_of
from fourfold.backends.communication.collectives import all_gather
from fourfold.backends.communication.ranks import Ranks
from fourfold.backends.kernels.attention import AS_IS, Hooks
from fourfold.backends.kernels.linear_loss import Vocabulary, linear_cross_entropy
from fourfold.backends.kernels.user_loss import Loss, chunked_loss, counted
from fourfold.backends.lowering.emit import suffix_function
from fourfold.backends.lowering.late import Late, sized
from fourfold.backends.lowering.lower import Lowered, Mixer, Region, lower
from fourfold.backends.stage import skeleton
from fourfold.backends.stage.host import Host
from fourfold.backends.stage.offload import Offloading
from fourfold.backends.stage.pace import Pace, timed
from fourfold.backends.stage.runner import Runner, untapped
from fourfold.ir.conversion import Move
from fourfold.ir.graph import Block, Graph, Source
from fourfold.ir.plan import Layout, Plan
from fourfold.ir.rule import State
from fourfold.ir.stages import Stage, calls_of, part, stages, state_of, value_of

CHUNK = 2048
"""Tokens whose logits exist at once."""


@dataclass(frozen=True, slots=True)
class Micro:
    """One micro-step on the device: tokens, positions, targets, weights, and what attention runs over."""

    given: tuple[Tensor, ...]
    documents: Held

    @property
    def tokens(self) -> int:
        """Tokens of this rank, padding included."""
        return self.given[0].shape[-1]


class Engine:
    """The lowered blocks of one plan on one rank, and where their parameters live."""

    def __init__(
        self, plan: Plan, graph: Graph, ranks: Ranks, *, compiled: bool, loss: Loss | None = None, paced: bool = False
    ) -> None:
        self.plan, self.graph, self.ranks, self.user_loss = plan, graph, ranks, loss
        self.scale = 1.0
        self.queues = Queues.of(ranks, node_size(plan))
        self.suffix = suffix_function(graph.suffix) if graph.suffix else None
        self.lowered = {name: self._lowered(block, training=True) for name, block in graph.blocks.items()}
        self.runners = {name: self._runner(low, compiled) for name, low in self.lowered.items()}
        self.pace = Pace(ranks.device)
        self.runners |= timed(self.runners, graph, self.pace) if paced else {}
        self.evaluating = self.runners | {
            name: self._runner(self._lowered(block, training=False), compiled)
            for name, block in graph.blocks.items()
            if _draws(block)
        }
        self.stored = self._stored()
        self.stages = stages(graph, plan.bounds)
        self.calls = calls_of(graph, plan, ranks.stage_rank)
        self.own = part(graph, self.calls)
        self.read = {(s.call, s.output): at for at, call in enumerate(graph.calls) for s in call.sources}
        self.host = Host.of(ranks.device)
        self.slots: dict[int, dict[str, skeleton.Slot]] = {}
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
        """Finds the parameters of every call of this rank in the tree."""
        for index, call in zip(self.calls, self.own.calls, strict=True):
            self.slots[index] = skeleton.slots(root, self.graph, call, self.lowered[call.block].partial)
        self.units = {self.calls[at]: found for at, found in skeleton.units(root, self.own)}

    def run(
        self,
        root: Any,
        stage: int,
        micro: Micro,
        taken: tuple[Tensor, ...],
        *,
        scale: float,
        training: bool,
        late: Late | None = None,
        loss: bool = True,
        away: Offloading | None = None,
    ) -> tuple[Tensor, ...]:
        """What a stage gives for one micro-step, from what it takes; the last one its share of the loss times `scale`.

        `late` catches what the weights' half of the backward needs; without `loss` the last stage gives nothing;
        `away` moves a part of what is kept for the backward.
        A collective of the pool and of the tensor axis.
        """
        self.scale = scale
        there = self.stages[stage] if loss else self._without_loss(self.stages[stage])
        found: tuple[Tensor, ...] = root(lambda: self._stage(there, micro, taken, training, late, away))
        return found

    def late(self, micro: Micro) -> Late:
        """For the weights of a stage whose gradients wait."""
        dtype = getattr(torch, self.plan.precision.compute)
        return Late.of(micro.tokens, self.ranks.tensor.size, dtype=dtype, device=self.ranks.device)

    def offloading(self, stage: int, share: float) -> Offloading | None:
        """What one forward of a stage leaves in the host's memory; its layers are the calls that mix tokens."""
        if not share:
            return None
        layers = [index for index in self.stages[stage].calls if self._mixes(index)]
        return Offloading(self.host, layers, share)

    def weigh(self, root: Any, stage: int, late: Late) -> None:
        """Gives the weights of a stage the gradients that wait, call by call from the last, as a backward of its own.

        Every unit is passed through, so that what was gathered is reduced and sharded as after any backward.
        """
        torch.autograd.backward(root(lambda: tuple(self._weighed(index, late) for index in self.stages[stage].calls)))

    def micro(self, packed: Packed, turn: Turn, chains: dict[int, Chain]) -> Micro:
        """A micro-step as stages run it; `chains` has what sequences in chunks keep on this rank, by sequence."""
        given = (packed.tokens, packed.positions, packed.targets, packed.weights)
        return Micro(given, attention_of(turn, packed.lengths, self.ranks, self.plan.sharing, chains, self.queues))

    def crosses(self, stage: int) -> tuple[bool, ...]:
        """Of each value a stage gives to the next: whether a gradient comes back for it."""
        return tuple(value_of(self.graph, source).grad for source in self.stages[stage].gives)

    def expected(self, stage: int, tokens: int) -> tuple[Tensor, ...]:
        """Empty tensors for what a stage takes in a micro-step of `tokens`."""
        return tuple(self._empty(source, tokens) for source in self.stages[stage].takes)

    def _without_loss(self, stage: Stage) -> Stage:
        """A stage without the call that ends in the loss."""
        past = len(self.graph.calls)
        return stage if stage.stop < past else replace(stage, stop=past - 1, gives=())

    def _empty(self, source: Source, tokens: int) -> Tensor:
        value, state = value_of(self.graph, source), state_of(self.plan, self.graph, source)
        shape = sized(value.shape, state, self.ranks.tensor.size, tokens=tokens)
        return torch.empty(shape, dtype=getattr(torch, value.dtype), device=self.ranks.device)

    def _stage(
        self,
        stage: Stage,
        micro: Micro,
        taken: tuple[Tensor, ...],
        training: bool,
        late: Late | None,
        away: Offloading | None,
    ) -> tuple[Tensor, ...]:
        made: dict[tuple[int, int], Tensor] = {
            (source.call, source.output): x for source, x in zip(stage.takes, taken, strict=True)
        }
        for index in stage.calls:
            sources = self.graph.calls[index].sources
            inputs = tuple(micro.given[s.output] if s.call < 0 else made[s.call, s.output] for s in sources)
            hooks = self._hooks(index, micro, away)
            with nullcontext() if hooks is AS_IS else saved_tensors_hooks(*hooks):
                found = self._call(index, inputs, micro.documents, training, late, hooks)
            made |= {(index, at): x for at, x in enumerate(found)}
            # What went to the host's memory is free only if nothing else holds it.
            made = {key: x for key, x in made.items() if self.read.get(key, inf) > index}
        return tuple(made[source.call, source.output] for source in stage.gives)

    def _hooks(self, index: int, micro: Micro, away: Offloading | None) -> Hooks:
        """How autograd keeps what a call saves."""
        if away is None:
            return AS_IS
        return away.hooks(index, lambda: (*micro.given, *(slot.local() for slot in self.slots[index].values())))

    def _call(
        self,
        index: int,
        inputs: tuple[Tensor, ...],
        documents: Held,
        training: bool,
        late: Late | None,
        hooks: Hooks,
    ) -> tuple[Tensor, ...]:
        call = self.graph.calls[index]
        runner, slots = (self.runners if training else self.evaluating)[call.block], self.slots[index]
        documents = documents.at(index) if isinstance(documents, Attention) else documents
        how = self.plan.recompute[index] if training and self.plan.recompute else "none"
        taps = untapped if late is None else partial(late.taps, index)

        def parameters() -> dict[str, Tensor]:
            return {name: slot.local() for name, slot in slots.items()}

        def run(*tensors: Tensor) -> tuple[Tensor, ...]:
            return runner.run(tensors, parameters, documents, recompute=how, taps=taps, hooks=hooks)

        found: tuple[Tensor, ...] = skeleton.nested(self.units.get(index, ()), run)(*inputs)
        return found

    def _mixes(self, index: int) -> bool:
        steps = self.lowered[self.graph.calls[index].block].steps
        return any(isinstance(step, Mixer) and step.node.op != "loss" for step in steps)

    def _weighed(self, index: int, late: Late) -> Tensor:
        slots = self.slots[index]

        def run(anchor: Tensor) -> Tensor:
            return late.products(index, anchor, lambda name: slots[name].local())

        found: Tensor = skeleton.nested(self.units.get(index, ()), run)(late.anchor)
        return found

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
        weight_VD = weight.t() if dict(step.node.kwargs).get("transposed") else weight
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
            return chunked_loss(x_1TD.squeeze(0), weight_VD, targets_T, weights_T, self.user_loss, **how)[0]
        return linear_cross_entropy(x_1TD.squeeze(0), weight_VD, targets_T, weights_T, **how)

    def _reduce(self, tensor: Tensor, how: str) -> None:
        kind = dist.ReduceOp.MAX if how == "max" else dist.ReduceOp.SUM
        dist.all_reduce(tensor, kind, group=self.ranks.mesh["tp"].get_group())

    def _gather(self, scores_CV: Tensor) -> Tensor:
        return all_gather(scores_CV, Move("all_gather", 1), self.ranks.tensor)


def _draws(block: Block) -> bool:
    """Whether training draws random numbers in the block."""
    return any(node.op == "dropout" for node in block.nodes)
