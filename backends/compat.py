"""Names that differ between the torch versions we support (2.11 to 2.13)."""

from __future__ import annotations

import torch
from torch.distributed.fsdp import FSDPModule


def sum_gradients(module: FSDPModule) -> None:
    """Gradients of this unit are summed over its ranks, never averaged; gloo has no scaled sum."""
    module.set_gradient_divide_factor(1.0)
    module.set_force_sum_reduction_for_comms(True)


def device_type() -> str:
    """The accelerator's type, or "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"
