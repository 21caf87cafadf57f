"""Rows of several tensors as one message, and fresh tensors of kept rows and messages.

On a GPU each is one launch of rows_triton.py; the written-out versions are what it must equal.
Letters: N rows, H heads, D head dimension, W the widths of all tensors together.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

Tensors = tuple[Tensor, ...]


def gathered(rows: Sequence[Tensor]) -> Tensor:
    """[N, W]: the same rows of several tensors [N, H, D] side by side."""
    return _triton().gathered(rows) if _claims(rows) else written_gathered(rows)


def joined(kept: Sequence[Tensor], messages_NW: Sequence[Tensor], rows: int) -> Tensors:
    """Fresh tensors of `rows` rows: those of each kept tensor [N, H, D], those of all messages, and zeros."""
    return _triton().joined(kept, messages_NW, rows) if _claims(kept) else written_joined(kept, messages_NW, rows)


def written_gathered(rows: Sequence[Tensor]) -> Tensor:
    """`gathered` in plain torch."""
    return torch.cat([x.flatten(1) for x in rows], 1)


def written_joined(kept: Sequence[Tensor], messages_NW: Sequence[Tensor], rows: int) -> Tensors:
    """`joined` in plain torch."""
    widths = [x.shape[1:].numel() for x in kept]
    parts = [message.split(widths, 1) for message in messages_NW]  # type: ignore[no-untyped-call]
    found = []
    for at, x in enumerate(kept):
        arrived = [part[at].unflatten(1, x.shape[1:]) for part in parts]
        padding = rows - len(x) - sum(len(part) for part in arrived)
        found.append(torch.cat((x, *arrived, x.new_zeros((padding, *x.shape[1:])))))
    return tuple(found)


def _triton() -> ModuleType:
    # Triton is loaded where a GPU will use it: a CPU has no need of it, and not every system has it.
    from fourfold.backends.kernels import rows_triton

    return rows_triton


def _claims(tensors: Sequence[Tensor]) -> bool:
    """Up to three tensors of one head dimension on a GPU: q, k and v, or one of them."""
    one = tensors[0]
    return (
        one.is_cuda
        and len(tensors) <= 3
        and one.dtype in (torch.bfloat16, torch.float16, torch.float32)
        and all(x.dim() == 3 and x.shape[2] == one.shape[2] and x.dtype == one.dtype for x in tensors)
    )
