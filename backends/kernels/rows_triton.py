"""One launch that packs rows of q, k and v into a message, and one that makes fresh q, k and v of rows and messages.

A program moves a tile of rows of one head. Source: the remapping layer of Zeppelin (arXiv 2509.21841).
Letters: N rows, H heads, D head dimension, W the widths of all tensors together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 32
MESSAGES = 3
"""That one launch reads; more are joined before."""


@triton.jit(do_not_specialize=["rows"])
def pack_kernel(
    message_NW: tl.tensor,
    first_NHD: tl.tensor,
    second_NHD: tl.tensor,
    third_NHD: tl.tensor,
    rows: tl.tensor,
    first_row: tl.tensor,
    first_head: tl.tensor,
    second_row: tl.tensor,
    second_head: tl.tensor,
    third_row: tl.tensor,
    third_head: tl.tensor,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    THIRD: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """Rows of up to three tensors side by side; FIRST, SECOND and THIRD are their heads, numbers of rows' and heads'
    strides."""
    head = tl.program_id(1).to(tl.int64)
    row, column = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, PADDED)
    inside = (row < rows)[:, None] & (column < WIDTH)[None, :]
    there = message_NW + row[:, None] * ((FIRST + SECOND + THIRD) * WIDTH) + head * WIDTH + column[None, :]
    if head < FIRST:
        here = first_NHD + row[:, None] * first_row + head * first_head + column[None, :]
        tl.store(there, tl.load(here, mask=inside), mask=inside)
    elif head < FIRST + SECOND:
        here = second_NHD + row[:, None] * second_row + (head - FIRST) * second_head + column[None, :]
        tl.store(there, tl.load(here, mask=inside), mask=inside)
    else:
        here = third_NHD + row[:, None] * third_row + (head - FIRST - SECOND) * third_head + column[None, :]
        tl.store(there, tl.load(here, mask=inside), mask=inside)


@triton.jit(do_not_specialize=["rows", "kept", "one", "two", "end"])
def join_kernel(
    message_NW: tl.tensor,
    other_NW: tl.tensor,
    last_NW: tl.tensor,
    first_NHD: tl.tensor,
    second_NHD: tl.tensor,
    third_NHD: tl.tensor,
    into_NHD: tl.tensor,
    into_second_NHD: tl.tensor,
    into_third_NHD: tl.tensor,
    rows: tl.tensor,
    kept: tl.tensor,
    one: tl.tensor,
    two: tl.tensor,
    end: tl.tensor,
    first_row: tl.tensor,
    first_head: tl.tensor,
    second_row: tl.tensor,
    second_head: tl.tensor,
    third_row: tl.tensor,
    third_head: tl.tensor,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    THIRD: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """Rows before `kept` are the tensors', those before `one`, `two` and `end` the messages', the rest zero."""
    head = tl.program_id(1).to(tl.int64)
    row, column = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None], tl.arange(0, PADDED)[None, :]
    wide = column < WIDTH
    if head < FIRST:
        own, heads, into = head, FIRST, into_NHD
        here = first_NHD + row * first_row + own * first_head
    elif head < FIRST + SECOND:
        own, heads, into = head - FIRST, SECOND, into_second_NHD
        here = second_NHD + row * second_row + own * second_head
    else:
        own, heads, into = head - FIRST - SECOND, THIRD, into_third_NHD
        here = third_NHD + row * third_row + own * third_head
    place, stride = head * WIDTH + column, (FIRST + SECOND + THIRD) * WIDTH
    found = tl.load(here + column, mask=(row < kept) & wide, other=0.0)
    some = (row >= kept) & (row < one)
    found = tl.where(some, tl.load(message_NW + (row - kept) * stride + place, mask=some & wide, other=0.0), found)
    some = (row >= one) & (row < two)
    found = tl.where(some, tl.load(other_NW + (row - one) * stride + place, mask=some & wide, other=0.0), found)
    some = (row >= two) & (row < end)
    found = tl.where(some, tl.load(last_NW + (row - two) * stride + place, mask=some & wide, other=0.0), found)
    tl.store(into + (row * heads + own) * WIDTH + column, found, mask=(row < rows) & wide)


def gathered(rows: Sequence[Tensor]) -> Tensor:
    """[N, W]: the same rows of up to three tensors [N, H, D] side by side."""
    rows = [_dense(x) for x in rows]
    count = rows[0].shape[0]
    message = rows[0].new_empty((count, sum(x.shape[1] * x.shape[2] for x in rows)))
    if message.numel():
        pack_kernel[_grid(rows, count)](message, *_three(rows), count, *_strides(rows), **_sizes(rows))
    return message


def joined(kept: Sequence[Tensor], messages_NW: Sequence[Tensor], rows: int) -> tuple[Tensor, ...]:
    """Fresh tensors of `rows` rows: those of up to three tensors [N, H, D], those of all messages, and zeros."""
    kept = [_dense(x) for x in kept]
    messages = [x for x in messages_NW if x.numel()]
    messages = [torch.cat(messages)] if len(messages) > MESSAGES else messages
    into = tuple(x.new_empty((rows, *x.shape[1:])) for x in kept)
    if not into[0].numel():
        return into
    ends = [kept[0].shape[0]]
    for at in range(MESSAGES):
        ends.append(ends[-1] + (messages[at].shape[0] if at < len(messages) else 0))
    sources = [messages[at] if at < len(messages) else kept[0] for at in range(MESSAGES)]
    tensors = (*sources, *_three(kept), *_three(into))
    join_kernel[_grid(kept, rows)](*tensors, rows, *ends, *_strides(kept), **_sizes(kept))
    return into


def _dense(x: Tensor) -> Tensor:
    return x if x.stride(2) == 1 else x.contiguous()


def _three(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors, the first again in place of those that there are not."""
    return [tensors[at] if at < len(tensors) else tensors[0] for at in range(3)]


def _strides(tensors: Sequence[Tensor]) -> list[int]:
    return [stride for x in _three(tensors) for stride in (x.stride(0), x.stride(1))]


def _grid(tensors: Sequence[Tensor], rows: int) -> tuple[int, int]:
    return triton.cdiv(rows, ROWS), sum(x.shape[1] for x in tensors)


def _sizes(tensors: Sequence[Tensor]) -> dict[str, int]:
    heads = [x.shape[1] for x in tensors] + [0, 0]
    width = tensors[0].shape[2]
    named = dict(zip(("FIRST", "SECOND", "THIRD"), heads, strict=False))
    return named | {"WIDTH": width, "PADDED": 1 << (width - 1).bit_length(), "ROWS": ROWS}
