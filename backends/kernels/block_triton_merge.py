"""Two attentions of the same rows over different keys, as one: the sums and what is added are read once.

Letters: M rows of queries, H query heads, D head dimension.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 32


@triton.jit(do_not_specialize=["rows"])
def merge_kernel(
    out_MHD: tl.tensor,
    lse_HM: tl.tensor,
    new_MHD: tl.tensor,
    new_HM: tl.tensor,
    rows: tl.tensor,
    lse_stride: tl.tensor,
    row_stride: tl.tensor,
    head_stride: tl.tensor,
    new_stride: tl.tensor,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """Adds (new, its lse) to (out, lse) in place, a tile of rows of one head; strides are those of lse and of new."""
    head = tl.program_id(1)
    row, column = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, PADDED)
    inside = (row < rows)[:, None] & (column < WIDTH)[None, :]
    lse_at = lse_HM + head.to(tl.int64) * lse_stride + row
    known = tl.load(lse_at, mask=row < rows, other=float("-inf"))
    more = tl.load(new_HM + head.to(tl.int64) * new_stride + row, mask=row < rows, other=float("-inf"))
    higher = tl.maximum(known, more)
    # No key on either side: -inf minus -inf is no number.
    finite = tl.where(higher == float("-inf"), 0.0, higher)
    total = tl.exp(known - finite) + tl.exp(more - finite)
    share = tl.exp(more - finite) / tl.where(total == 0.0, 1.0, total)
    places = (row * HEADS + head)[:, None] * WIDTH + column[None, :]
    out = tl.load(out_MHD + places, mask=inside, other=0.0)
    new_at = new_MHD + row[:, None] * row_stride + head.to(tl.int64) * head_stride + column[None, :]
    new = tl.load(new_at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_MHD + places, out + (new - out) * share[:, None], mask=inside)
    both = tl.where(total == 0.0, float("-inf"), finite + tl.log(tl.where(total == 0.0, 1.0, total)))
    tl.store(lse_at, both, mask=row < rows)


def mix(out_MHD: Tensor, lse_HM: Tensor, new_MHD: Tensor, new_HM: Tensor) -> None:
    """Adds, in place, an attention over other keys to float32 sums; an lse of -inf stands for no key."""
    assert out_MHD.is_contiguous() and out_MHD.dtype == torch.float32 and lse_HM.stride(1) == 1
    rows, heads, width = out_MHD.shape
    if not rows:
        return
    new_MHD = new_MHD if new_MHD.stride(2) == 1 else new_MHD.contiguous()
    new_HM = new_HM if new_HM.stride(1) == 1 else new_HM.contiguous()
    strides = (lse_HM.stride(0), new_MHD.stride(0), new_MHD.stride(1), new_HM.stride(0))
    sizes = {"HEADS": heads, "WIDTH": width, "PADDED": 1 << (width - 1).bit_length(), "ROWS": ROWS}
    merge_kernel[(-(-rows // ROWS), heads)](out_MHD, lse_HM, new_MHD, new_HM, rows, *strides, **sizes)
