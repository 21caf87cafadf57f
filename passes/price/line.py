"""One place in a line of pipeline stages: the calls of its stages, and what a rank there holds and keeps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import ceil, prod

from fourfold.costmodel.kernel import chore_time, stream_time
from fourfold.costmodel.memory import (
    Band,
    Memory,
    activation_memory,
    communicator_memory,
    library_workspace,
    logits_memory,
    peak,
)
from fourfold.costmodel.state import Held, State, Widths, backward_memory, state_memory, update_memory
from fourfold.hardware.machine import Device
from fourfold.ir.ops import rule_for
from fourfold.ir.plan import RECOMPUTE, SIZES, SPLIT, Layout, Plan
from fourfold.ir.rule import WHOLE
from fourfold.passes.price.held import held
from fourfold.passes.price.laid import LaidGraph
from fourfold.passes.price.seconds import CHUNK
from fourfold.passes.price.work import BlockWork

CLIPPED = 12.0
"""Bytes a parameter that gradient clipping moves: one read for the norm, one read and write to scale."""


@dataclass(frozen=True, slots=True)
class Head:
    """The product that makes logits: rows of the vocabulary on one tensor rank, width, bytes of an element."""

    vocabulary: int
    width: int
    size: int


@dataclass(frozen=True)
class Line:
    """The ranks of one place. `calls` are those of its stages, `in_flight` how many micro-steps it keeps at once, and
    `owed` of how many others it keeps what a split backward still needs."""

    plan: Plan
    device: Device
    laid: LaidGraph
    work: Mapping[str, BlockWork]
    calls: tuple[int, ...]
    in_flight: float
    owed: float = 0.0

    @cached_property
    def counts(self) -> Mapping[str, int]:
        """How often each block is called here."""
        return Counter(self.plan.graph.calls[i].block for i in self.calls)

    @cached_property
    def held(self) -> Held:
        """Parameter elements of one rank by unit."""
        return held(self.plan, self.laid, self.calls)

    @cached_property
    def kept(self) -> tuple[float, float]:
        """Bytes of activations kept at the fullest moment, and those that the largest recomputed block brings back."""
        modes = self.plan.recompute or (RECOMPUTE[0],) * len(self.plan.graph.calls)
        counted = Counter((self.plan.graph.calls[i].block, modes[i]) for i in self.calls)
        saved = sum(count * self.work[block].kept[mode] for (block, mode), count in counted.items())
        again = (self.work[block].kept["none"] for block, mode in counted if mode != "none")
        return saved * self.in_flight, max(again, default=0.0)

    def memory(self) -> Memory:
        """The fullest moment of a step on one rank."""
        return self.memory_with(*self.kept)

    def memory_with(self, saved: float, replayed: float) -> Memory:
        """The same if activations took these bytes."""
        head, logits, gradient = self.head, Band(), 0.0
        if head is not None:
            logits = logits_memory(chunk=CHUNK, vocabulary=head.vocabulary, width=head.size)
            # The loss makes the gradient of its weight in forward, in float32.
            gradient = 4.0 * head.vocabulary * head.width
        blocks = [self.work[name] for name in self.counts]
        working, scratch = max(block.kept["none"] for block in blocks), max(block.scratch for block in blocks)
        backward = backward_memory(
            self._state,
            activations=activation_memory(
                saved=saved + self._waiting(saved) + gradient, replayed=replayed, working=working
            ),
            logits=logits,
            workspace=library_workspace(self.device) + Band(0.0, scratch),
            communicators=self._communicators,
        )
        return peak(backward, update_memory(self._state, communicators=self._communicators))

    def _waiting(self, saved: float) -> float:
        """Bytes that weights wait for; of the micro-step whose I is at work, what is more than it kept until then."""
        if self.plan.mesh.pp == 1 or self.plan.schedule not in SPLIT:
            return 0.0
        late = sum(count * self.work[block].late.kept for block, count in self.counts.items())
        return self.owed * late + max(0.0, late - saved / self.in_flight)

    @cached_property
    def optimizer(self) -> float:
        """Seconds of clipping and of the update of this rank's shard: each number read and written once."""
        width, state = SIZES[self.plan.precision.parameter], self.plan.optimizer.state
        size = self.held.trainable_shard * (3.0 * width + 2.0 * state + CLIPPED)
        if "update" in self.device.chores:
            tensors = sum(row.times for row in self.laid.rows(self.calls) if row.trained)
            return tensors * chore_time("update", self.device, size / max(1, tensors))
        return stream_time(size, self.device) if size else 0.0

    @cached_property
    def head(self) -> Head | None:
        """The model's last product, as a rank holds it; None where it lies elsewhere."""
        graph = self.plan.graph
        found = ((n, graph.blocks[n], node) for n in self.counts for node in graph.blocks[n].nodes if node.op == "loss")
        name, block, node = next(found, (None, None, None))
        if name is None or block is None or node is None:
            return None
        values = block.values()
        width = values[node.refs()[0]].shape[-1]
        weight = values[node.refs()[1]]
        cut = self.plan.layouts.get(name, Layout()).cuts.get(node.name, WHOLE)
        share = self.plan.mesh.tp if cut in rule_for(node, values, cut).reduced else 1
        return Head(prod(weight.shape) // width // share, width, SIZES[weight.dtype])

    @cached_property
    def _state(self) -> State:
        plan, p = self.plan, self.plan.precision
        widths = Widths(SIZES[p.parameter], SIZES[p.compute], SIZES[p.reduce], ceil(plan.optimizer.state))
        return state_memory(self.held, widths, zero=plan.zero, pool=plan.mesh.pool, micro_steps=plan.micro_steps)

    @cached_property
    def _communicators(self) -> Band:
        mesh = self.plan.mesh
        used = (mesh.pool > 1) + (mesh.tp > 1) + (mesh.pp > 1) + (mesh.sp > 1)
        return communicator_memory(used, self.device)
