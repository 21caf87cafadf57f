"""Runs one call of a lowered block: regions as compiled functions, attention and loss between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from fourfold.backends.collectives import Axis
from fourfold.backends.kernels.attention import attend
from fourfold.backends.kernels.documents import Documents
from fourfold.backends.lower import Lowered, Mixer, Region

RegionFunction = Callable[..., tuple[Tensor, ...]]
LossFunction = Callable[[Mixer, tuple[Tensor, ...]], Tensor]


@dataclass(frozen=True, slots=True)
class Runner:
    """One block class ready to run. `functions` holds the (compiled) function of each region, in order of the steps."""

    lowered: Lowered
    functions: tuple[RegionFunction | None, ...]
    axis: Axis
    loss: LossFunction = field(repr=False)

    def run(self, inputs: tuple[Tensor, ...], parameters: Mapping[str, Tensor], documents: Documents) -> tuple[Tensor, ...]:
        """The block's outputs, each in the state the plan gives it."""
        env: dict[str, Tensor] = {**dict(zip(self.lowered.block.inputs, inputs, strict=True)), **parameters}
        for step, function in zip(self.lowered.steps, self.functions, strict=True):
            if isinstance(step, Region):
                assert function is not None
                found = function(*(env[i] for i in step.inputs), *(env[p] for p in step.parameters))
                env.update(zip(step.outputs, found, strict=True))
            else:
                env[step.node.name] = self._mix(step, tuple(env[i] for i in step.inputs), documents)
        return tuple(env[o] for o in self.lowered.outputs)

    def _mix(self, step: Mixer, inputs: tuple[Tensor, ...], documents: Documents) -> Tensor:
        if step.node.op == "loss":
            return self.loss(step, inputs)
        q_THE, k_TGE, v_TGE = (x[0].transpose(0, 1) for x in inputs)
        if step.cut == "h":
            k_TGE, v_TGE = (self._own_heads(x, q_THE.shape[1]) for x in (k_TGE, v_TGE))
        options: dict[str, Any] = dict(step.node.kwargs)
        out_THE = attend(q_THE, k_TGE, v_TGE, documents, scale=options["scale"], causal=options["causal"])
        return out_THE.transpose(0, 1)[None]

    def _own_heads(self, x_TGE: Tensor, heads: int) -> Tensor:
        """The key/value head of each of this rank's query heads, when every rank holds all key/value heads."""
        share = heads * self.axis.size // x_TGE.shape[1]
        first = self.axis.rank * heads
        index = torch.arange(first, first + heads, device=x_TGE.device) // share
        return x_TGE.index_select(1, index)


def recomputed(run: Callable[..., tuple[Tensor, ...]], how: str) -> Callable[..., tuple[Tensor, ...]]:
    """`run` with what its backward needs kept ("none"), or computed again: all of it, or all but attention's outputs."""
    if how == "none":
        return run
    if how == "full":
        return lambda *args: checkpoint(run, *args, use_reentrant=False, preserve_rng_state=True)
    return lambda *args: checkpoint(run, *args, use_reentrant=False, context_fn=_keep_attention)


def _keep_attention() -> Any:
    return create_selective_checkpoint_contexts(_policy)


def _policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    kept = op is torch.ops.fourfold.attention.default
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
