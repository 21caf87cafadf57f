"""Names that differ between the torch versions we support (2.11 to 2.13)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch._inductor
from torch._functorch import config as functorch_config
from torch.distributed.fsdp import FSDPModule


def sum_gradients(module: FSDPModule) -> None:
    """Gradients of this unit are summed over its ranks, never averaged; gloo has no scaled sum."""
    module.set_gradient_divide_factor(1.0)
    module.set_force_sum_reduction_for_comms(True)


def lean(graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    """A compiler of regions whose backward makes cheap matmul inputs again (a norm's output, a gate times its branch)
    instead of keeping them: what passes/price/saved.py counts, a third less than torch keeps by default."""
    return _compiled(graph, inputs, ban_recompute_materialized_backward=False)


def frugal(graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    """A compiler of regions whose backward is given their inputs only, and works out the rest in one graph with itself.

    Beside a checkpoint, which runs a whole compiled region again, this leaves out what the backward does not read:
    the last matmul of a feed-forward, say.
    """
    return _compiled(graph, inputs, activation_memory_budget=0.0)


def _compiled(graph: torch.fx.GraphModule, inputs: Sequence[Any], **settings: Any) -> Callable[..., Any]:
    with functorch_config.patch(**settings):
        found: Callable[..., Any] = torch._inductor.compile(graph, list(inputs))
        return found
