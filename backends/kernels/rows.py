"""Rows of several tensors as one message, and a message as rows of several tensors.

Letters: N rows, W the widths of all tensors together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def gathered(rows: Sequence[Tensor]) -> Tensor:
    """[N, W]: the same rows of several tensors [N, ..] side by side."""
    return torch.cat([x.flatten(1) for x in rows], 1)


def scattered(message_NW: Tensor, like: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The rows of each tensor, shaped as rows of `like`: views of the message."""
    parts = message_NW.split([x.shape[1:].numel() for x in like], 1)  # type: ignore[no-untyped-call]
    return tuple(part.unflatten(1, x.shape[1:]) for part, x in zip(parts, like, strict=True))
