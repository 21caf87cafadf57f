"""The forward kernel of our own block attention: online softmax that goes on from the sums, a tile of rows a program.

Source: FlashAttention-2 (Dao 2023), algorithm 1, begun at m = lse, l = 1, acc = out of the keys met before. Logarithms
are to base 2 inside. Letters: M rows of queries, N rows of keys, H query heads, G key/value heads, D head dimension.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["rows", "keys"])
def forward_kernel(
    q_MHD: tl.tensor,
    k_NGD: tl.tensor,
    v_NGD: tl.tensor,
    out_MHD: tl.tensor,
    lse_HM: tl.tensor,
    spans_2M: tl.tensor,
    jobs: tl.tensor,
    rows: tl.tensor,
    keys: tl.tensor,
    scale: tl.tensor,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    FRESH: tl.constexpr,
) -> None:
    """Adds the keys of the spans to out and lse, in place, or (FRESH) writes both; rows that see none are kept."""
    start, low, left, full, steps = job(jobs)
    head = tl.program_id(1)
    row, column = start + tl.arange(0, ROWS), tl.arange(0, PADDED)
    inside = (row < rows)[:, None] & (column < WIDTH)[None, :]
    places = (row.to(tl.int64) * HEADS + head)[:, None] * WIDTH + column[None, :]
    first = tl.load(spans_2M + row, mask=row < rows, other=0)
    past = tl.load(spans_2M + rows + row, mask=row < rows, other=0)
    lse_at = lse_HM + head.to(tl.int64) * rows + row
    q = tl.load(q_MHD + places, mask=inside, other=0.0)
    acc = tl.zeros((ROWS, PADDED), tl.float32)
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    if not FRESH:
        acc = tl.load(out_MHD + places, mask=inside, other=0.0)
        top = tl.load(lse_at, mask=row < rows, other=float("-inf")) * 1.4426950408889634
    total = tl.where(top == float("-inf"), 0.0, 1.0)
    group = (head // (HEADS // GROUPS)) * WIDTH
    scale = scale * 1.4426950408889634
    for step in range(steps - full):
        at = low + tl.where(step < left, step, step + full) * KEYS
        s, v = scores(q, k_NGD + group, v_NGD + group, at, keys, True, GROUPS, WIDTH, PADDED, KEYS)
        key = (at + tl.arange(0, KEYS))[None, :]
        s = tl.where((key >= first[:, None]) & (key < past[:, None]), s * scale, float("-inf"))
        acc, total, top = met(acc, total, top, s, v)
    for step in range(left, left + full):
        s, v = scores(q, k_NGD + group, v_NGD + group, low + step * KEYS, keys, False, GROUPS, WIDTH, PADDED, KEYS)
        acc, total, top = met(acc, total, top, s * scale, v)
    sees = past > first
    total = tl.where(sees, total, 1.0)
    tl.store(out_MHD + places, acc / total[:, None], mask=inside & sees[:, None])
    tl.store(lse_at, (top + tl.log2(total)) * 0.6931471805599453, mask=(row < rows) & sees)


@triton.jit
def job(jobs: tl.tensor) -> tuple[tl.tensor, ...]:
    """The numbers of this program's job, as block_spans orders them."""
    at = jobs + tl.program_id(0) * 5
    return tl.load(at), tl.load(at + 1), tl.load(at + 2), tl.load(at + 3), tl.load(at + 4)


@triton.jit
def scores(
    q: tl.tensor,
    k_at: tl.tensor,
    v_at: tl.tensor,
    at: tl.tensor,
    keys: tl.tensor,
    EDGE: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    KEYS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """q k^T [rows, keys] of a tile of keys and its v; `EDGE`: some keys may be past the last."""
    k, v = keys_of(k_at, v_at, at, keys, EDGE, GROUPS, WIDTH, PADDED, KEYS)
    return tl.dot(q, tl.trans(k), input_precision="ieee"), v


@triton.jit
def keys_of(
    k_at: tl.tensor,
    v_at: tl.tensor,
    at: tl.tensor,
    keys: tl.tensor,
    EDGE: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    KEYS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """A tile of k and of v, [keys, D]; zero past the last key and past the head's width."""
    key, column = tl.arange(0, KEYS), tl.arange(0, PADDED)
    places = key[:, None] * (GROUPS * WIDTH) + column[None, :]
    offset = at.to(tl.int64) * (GROUPS * WIDTH)
    if EDGE or WIDTH < PADDED:
        inside = (at + key < keys)[:, None] & (column < WIDTH)[None, :]
        k = tl.load(k_at + offset + places, mask=inside, other=0.0)
        v = tl.load(v_at + offset + places, mask=inside, other=0.0)
    else:
        k = tl.load(k_at + offset + places)
        v = tl.load(v_at + offset + places)
    return k, v


@triton.jit
def met(
    acc: tl.tensor, total: tl.tensor, top: tl.tensor, s: tl.tensor, v: tl.tensor
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """The running sums after a tile of scores; a row that has met no key keeps a top of -inf."""
    higher = tl.maximum(top, tl.max(s, 1))
    # -inf minus -inf is no number.
    finite = tl.where(higher == float("-inf"), 0.0, higher)
    p = tl.exp2(s - finite[:, None])
    shrink = tl.exp2(top - finite)
    acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
    return acc, total * shrink + tl.sum(p, 1), higher
