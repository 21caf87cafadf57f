"""Runs one call of a lowered block: regions as compiled functions, attention and loss between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fourfold.backends.attention.attention import Attention, Held, Work, attend_parts
from fourfold.backends.communication.collectives import Axis
from fourfold.backends.kernels.attention import AS_IS, Hooks, Kept, attend
from fourfold.backends.lowering.late import Tap
from fourfold.backends.lowering.lower import Lowered, Mixer, Region
from fourfold.ir.sequence.rectangles import Softmax

RegionFunction = Callable[..., tuple[Tensor, ...]]
LossFunction = Callable[[Mixer, tuple[Tensor, ...]], Tensor]
Taps = Callable[[tuple[Tap, ...]], tuple[Tensor, ...]]
"""The taps of a region's linear layers; none where every gradient comes at once."""


def untapped(taps: tuple[Tap, ...]) -> tuple[Tensor, ...]:
    """No taps."""
    return ()


@dataclass(frozen=True, slots=True)
class Runner:
    """One block class ready to run. `functions` holds the (compiled) function of each region, in order of the steps.

    `frugal` is the last region's function compiled to keep nothing but its inputs for its backward, where there is one;
    `random` says that running the block twice must draw the same numbers.
    """

    lowered: Lowered
    functions: tuple[RegionFunction | None, ...]
    axis: Axis
    loss: LossFunction = field(repr=False)
    frugal: RegionFunction | None = None
    random: bool = False

    def run(
        self,
        inputs: tuple[Tensor, ...],
        parameters: Callable[[], Mapping[str, Tensor]],
        documents: Held,
        *,
        recompute: str = "none",
        taps: Taps = untapped,
        hooks: Hooks = AS_IS,
    ) -> tuple[Tensor, ...]:
        """The block's outputs, each in the state the plan gives it.

        recompute: what the backward finds kept ("none"), or works out anew: all ("full"), or all but attention's
        results ("regions"). A block with the loss keeps its own: the loss makes its gradients in its forward.
        `parameters` is asked again in a replay, when what was gathered first may be gone. `taps` catch the gradients
        of weights that shall wait (backends/lowering/late.py). `hooks` keep attention's results for a replay.
        """
        env = dict(zip(self.lowered.block.inputs, inputs, strict=True))
        if recompute != "none" and not self._has_loss():
            kept = Kept(hooks=hooks) if recompute == "regions" else None
            return self._replayed(env, parameters, documents, kept, taps)
        env.update(parameters())
        for index in range(len(self.lowered.steps)):
            self._advance(index, env, documents, taps=taps)
        return tuple(env[o] for o in self.lowered.outputs)

    def _replayed(
        self,
        env: dict[str, Tensor],
        parameters: Callable[[], Mapping[str, Tensor]],
        documents: Held,
        kept: Kept | None,
        taps: Taps,
    ) -> tuple[Tensor, ...]:
        """The outputs, from a checkpoint around the steps; a frugal last region needs none and stays outside."""
        frugal = self.frugal if kept is not None else None
        inside = len(self.lowered.steps) - (frugal is not None)
        wanted = self._crossing(inside)
        # The replay is given the inputs by autograd alone: a reference of its own would keep what is offloaded.
        names = tuple(env)

        def head(*tensors: Tensor) -> tuple[Tensor, ...]:
            if kept is not None:
                kept.start()
            values = dict(zip(names, tensors, strict=True)) | dict(parameters())
            for index in range(inside):
                self._advance(index, values, documents, taps=taps, kept=kept)
            return tuple(values[name] for name in wanted)

        found = _checkpointed(head, tuple(env.values()), self.random) if inside else ()
        if frugal is None:
            return found
        values = env | dict(zip(wanted, found, strict=True)) | dict(parameters())
        self._advance(inside, values, documents, taps=taps, function=frugal)
        return tuple(values[o] for o in self.lowered.outputs)

    def _crossing(self, inside: int) -> tuple[str, ...]:
        """What the first `inside` steps must hand on: to the last region and the caller, or to the caller alone."""
        steps, outputs = self.lowered.steps, self.lowered.outputs
        if inside == len(steps):
            return outputs
        last = steps[inside]
        assert isinstance(last, Region)
        known = {*self.lowered.block.inputs, *last.outputs}
        return tuple(dict.fromkeys(n for n in (*last.inputs, *outputs) if n not in known))

    def _advance(
        self,
        index: int,
        env: dict[str, Tensor],
        documents: Held,
        *,
        taps: Taps,
        kept: Kept | None = None,
        function: RegionFunction | None = None,
    ) -> None:
        """Adds what one step makes to `env`."""
        step = self.lowered.steps[index]
        if isinstance(step, Mixer):
            env[step.node.name] = self._mix(step, tuple(env[i] for i in step.inputs), documents, kept)
            return
        function = self.functions[index] if function is None else function
        assert function is not None
        found = function(*(env[i] for i in step.inputs), *(env[p] for p in step.parameters), *taps(step.taps))
        for name, value in zip(step.outputs, found, strict=True):
            env[name] = value.transpose(1, 2) if name in step.heads else value

    def _has_loss(self) -> bool:
        return any(isinstance(step, Mixer) and step.node.op == "loss" for step in self.lowered.steps)

    def _mix(self, step: Mixer, inputs: tuple[Tensor, ...], documents: Held, kept: Kept | None = None) -> Tensor:
        if step.node.op == "loss":
            return self.loss(step, inputs)
        # A view whose backward is a view: that of x[0] fills zeros and copies, heads before tokens.
        q_THE, k_TGE, v_TGE = (x.squeeze(0).transpose(0, 1) for x in inputs)
        if step.cut == "h":
            k_TGE, v_TGE = (self._own_heads(x, q_THE.shape[1]) for x in (k_TGE, v_TGE))
        options: dict[str, Any] = dict(step.node.kwargs)
        how = {"scale": options["scale"], "causal": options["causal"], "window": options.get("window")}
        operands = (q_THE, k_TGE, v_TGE)
        if isinstance(documents, Attention):
            work = Work(documents, Softmax(**how), (documents.call, step.node.name))
            out_THE = attend_parts(*operands, work, kept=kept)
        else:
            out_THE = attend(*operands, documents, **how, kept=kept)
        return out_THE.transpose(0, 1)[None]

    def _own_heads(self, x_TGE: Tensor, heads: int) -> Tensor:
        """The key/value head of each of this rank's query heads, when every rank holds all key/value heads."""
        share = heads * self.axis.size // x_TGE.shape[1]
        first = self.axis.rank * heads
        index = torch.arange(first, first + heads, device=x_TGE.device) // share
        return x_TGE.index_select(1, index)


def _checkpointed(
    run: Callable[..., tuple[Tensor, ...]], inputs: tuple[Tensor, ...], random: bool
) -> tuple[Tensor, ...]:
    found: tuple[Tensor, ...] = checkpoint(run, *inputs, use_reentrant=False, preserve_rng_state=random)
    return found
