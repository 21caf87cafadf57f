"""The documents of one packed token axis: how long each is, where each starts, which neighbours are equally long.

Shape letters used by the kernels of this folder: T packed tokens, H query heads, G key/value heads, D head dimension,
N documents of one span, L tokens of one document.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TypeVar

import torch
from torch import Tensor

from fourfold.backends.communication.aside import moved
from fourfold.hardware.errors import RunError
from fourfold.ir.sequence.rectangles import once

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Span:
    """Equally long neighbouring documents: `count` of them, each of `length` tokens, from token `start` on."""

    start: int
    length: int
    count: int

    @property
    def tokens(self) -> int:
        """The tokens of all documents of the span."""
        return self.length * self.count


@dataclass(frozen=True, slots=True, eq=False)
class Documents:
    """The documents packed on one token axis, known on the host (lengths) and on the device (offsets).

    lengths: tokens of each document, in storage order, none of them zero; offsets: int32 [documents + 1] on the device
    of the tensors they describe, first 0, last the token count; longest: the largest length, 0 without documents; made:
    what kernels make of them, once for all layers.
    """

    lengths: tuple[int, ...]
    offsets: Tensor
    longest: int
    made: dict[Hashable, object] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device | str) -> Documents:
        """The documents of these lengths; empty ones hold no token and are left out. RunError on a negative length."""
        if any(length < 0 for length in lengths):
            raise RunError(f"document lengths {tuple(lengths)} hold a negative one; a length is 0 or more tokens")
        kept = tuple(int(length) for length in lengths if length)
        offsets = moved(torch.tensor((0, *accumulate(kept)), dtype=torch.int32), torch.device(device))
        return cls(kept, offsets, max(kept, default=0))

    def once(self, name: Hashable, make: Callable[[], T]) -> T:
        """What `make` gives, asked by the first layer that wants it."""
        return once(self.made, name, make)

    @property
    def tokens(self) -> int:
        """The tokens of all documents."""
        return sum(self.lengths)


def spans(lengths: Sequence[int]) -> Iterator[Span]:
    """Yield maximal runs of equally long neighbours, in storage order; documents of zero tokens are passed over."""
    start, length, count = 0, 0, 0
    for found in lengths:
        if found == 0:
            continue
        if found == length:
            count += 1
            continue
        if count:
            yield Span(start, length, count)
        start, length, count = start + length * count, found, 1
    if count:
        yield Span(start, length, count)


def dense(x_THD: Tensor, span: Span) -> Tensor:
    """The span's documents as a batch [N, H, L, D]: a view, laid out token-major like the packed tensor."""
    rows = x_THD[span.start : span.start + span.tokens]
    return rows.reshape(span.count, span.length, *x_THD.shape[1:]).transpose(1, 2)


def dense_lse(lse_HT: Tensor, span: Span) -> Tensor:
    """The span's log-sum-exps as a contiguous batch [N, H, L]."""
    columns = lse_HT[:, span.start : span.start + span.tokens]
    return columns.reshape(-1, span.count, span.length).transpose(0, 1).contiguous()


def packed(x_NHLD: Tensor) -> Tensor:
    """The batch's documents one after another, [N * L, H, D]; a view where the batch is token-major."""
    return x_NHLD.transpose(1, 2).flatten(0, 1)


def packed_lse(lse_NHL: Tensor) -> Tensor:
    """The batch's log-sum-exps one document after another, [H, N * L]."""
    return lse_NHL.transpose(0, 1).flatten(1, 2)


def joined(parts: Sequence[Tensor], axis: int, like: Tensor) -> Tensor:
    """The parts one after another along `axis`, contiguous, in the dtype of `like`; shaped as `like` where none."""
    if not parts:
        return torch.empty_like(like, memory_format=torch.contiguous_format)
    whole = parts[0] if len(parts) == 1 else torch.cat(tuple(parts), axis)
    return whole.to(like.dtype).contiguous()
