"""The backward kernels of our own block attention: one for dq, one for dk and dv, and the delta both read.

Every sum is kept in one program, so that results do not differ from run to run. Source: FlashAttention-2 (Dao 2023),
algorithm 2, with the lse over all keys. Letters: M rows of queries, N rows of keys, H query heads, G key/value heads,
D head dimension.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fourfold.backends.kernels.block_triton_forward import job, keys_of


@triton.jit(do_not_specialize=["rows"])
def delta_kernel(
    grad_MHD: tl.tensor,
    out_MHD: tl.tensor,
    delta_HM: tl.tensor,
    rows: tl.tensor,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """rowsum(grad * out) of a tile of rows of one head."""
    head = tl.program_id(1)
    row, column = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, PADDED)
    inside = (row < rows)[:, None] & (column < WIDTH)[None, :]
    places = (row.to(tl.int64) * HEADS + head)[:, None] * WIDTH + column[None, :]
    grad = tl.load(grad_MHD + places, mask=inside, other=0.0).to(tl.float32)
    out = tl.load(out_MHD + places, mask=inside, other=0.0).to(tl.float32)
    tl.store(delta_HM + head.to(tl.int64) * rows + row, tl.sum(grad * out, 1), mask=row < rows)


@triton.jit(do_not_specialize=["rows", "keys"])
def query_kernel(
    q_MHD: tl.tensor,
    k_NGD: tl.tensor,
    v_NGD: tl.tensor,
    grad_MHD: tl.tensor,
    lse_HM: tl.tensor,
    delta_HM: tl.tensor,
    dq_MHD: tl.tensor,
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
    """Adds to dq, in place, what a tile of rows finds in the keys it sees. FRESH: there is nothing in it yet."""
    start, low, left, full, steps = job(jobs)
    head = tl.program_id(1)
    row, column = start + tl.arange(0, ROWS), tl.arange(0, PADDED)
    inside = (row < rows)[:, None] & (column < WIDTH)[None, :]
    places = (row.to(tl.int64) * HEADS + head)[:, None] * WIDTH + column[None, :]
    first, past, lse, delta = rows_of(spans_2M, lse_HM, delta_HM, row, rows, head)
    q = tl.load(q_MHD + places, mask=inside, other=0.0)
    grad = tl.load(grad_MHD + places, mask=inside, other=0.0)
    k_at = k_NGD + (head // (HEADS // GROUPS)) * WIDTH
    v_at = v_NGD + (head // (HEADS // GROUPS)) * WIDTH
    acc = tl.zeros((ROWS, PADDED), tl.float32)
    for step in range(steps - full):
        at = low + tl.where(step < left, step, step + full) * KEYS
        k, v = keys_of(k_at, v_at, at, keys, True, GROUPS, WIDTH, PADDED, KEYS)
        key = (at + tl.arange(0, KEYS))[None, :]
        p = weights(q, k, lse[:, None], scale)
        p = tl.where((key >= first[:, None]) & (key < past[:, None]), p, 0.0)
        ds = p * (tl.dot(grad, tl.trans(v), input_precision="ieee") - delta[:, None])
        acc = tl.dot(ds.to(k.dtype), k, acc, input_precision="ieee")
    for step in range(left, left + full):
        k, v = keys_of(k_at, v_at, low + step * KEYS, keys, False, GROUPS, WIDTH, PADDED, KEYS)
        ds = weights(q, k, lse[:, None], scale) * (tl.dot(grad, tl.trans(v), input_precision="ieee") - delta[:, None])
        acc = tl.dot(ds.to(k.dtype), k, acc, input_precision="ieee")
    found = acc * scale
    if not FRESH:
        found += tl.load(dq_MHD + places, mask=inside, other=0.0)
    tl.store(dq_MHD + places, found, mask=inside & (past > first)[:, None])


@triton.jit(do_not_specialize=["rows", "keys"])
def key_kernel(
    q_MHD: tl.tensor,
    k_NGD: tl.tensor,
    v_NGD: tl.tensor,
    grad_MHD: tl.tensor,
    lse_HM: tl.tensor,
    delta_HM: tl.tensor,
    dk_NGD: tl.tensor,
    dv_NGD: tl.tensor,
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
    """Adds to dk and dv, in place, what a tile of keys gets from the rows that see it, over all heads that read it.

    FRESH: there is nothing in them yet.
    """
    start, low, left, full, steps = job(jobs)
    group = tl.program_id(1)
    k, v = keys_of(k_NGD + group * WIDTH, v_NGD + group * WIDTH, start, keys, True, GROUPS, WIDTH, PADDED, KEYS)
    dk = tl.zeros((KEYS, PADDED), tl.float32)
    dv = tl.zeros((KEYS, PADDED), tl.float32)
    for member in range(HEADS // GROUPS):
        head = group * (HEADS // GROUPS) + member
        for step in range(steps - full):
            at = low + tl.where(step < left, step, step + full) * ROWS
            q, grad = taken(q_MHD, grad_MHD, at, rows, head, True, HEADS, WIDTH, PADDED, ROWS)
            first, past, lse, delta = rows_of(spans_2M, lse_HM, delta_HM, at + tl.arange(0, ROWS), rows, head)
            key = (start + tl.arange(0, KEYS))[:, None]
            p = weights(k, q, lse[None, :], scale)
            p = tl.where((key >= first[None, :]) & (key < past[None, :]), p, 0.0)
            dk, dv = given(dk, dv, p, v, q, grad, delta)
        for step in range(left, left + full):
            at = low + step * ROWS
            q, grad = taken(q_MHD, grad_MHD, at, rows, head, False, HEADS, WIDTH, PADDED, ROWS)
            place = head.to(tl.int64) * rows + at + tl.arange(0, ROWS)
            lse, delta = tl.load(lse_HM + place) * 1.4426950408889634, tl.load(delta_HM + place)
            dk, dv = given(dk, dv, weights(k, q, lse[None, :], scale), v, q, grad, delta)
    added(dk_NGD + group * WIDTH, dk * scale, start, keys, GROUPS, WIDTH, PADDED, KEYS, FRESH)
    added(dv_NGD + group * WIDTH, dv, start, keys, GROUPS, WIDTH, PADDED, KEYS, FRESH)


@triton.jit
def rows_of(
    spans_2M: tl.tensor, lse_HM: tl.tensor, delta_HM: tl.tensor, row: tl.tensor, rows: tl.tensor, head: tl.tensor
) -> tuple[tl.tensor, ...]:
    """First key, past the last, lse to base 2 and delta of some rows; an lse of inf, which weighs 0, for no key."""
    inside = row < rows
    at = head.to(tl.int64) * rows + row
    first = tl.load(spans_2M + row, mask=inside, other=0)
    past = tl.load(spans_2M + rows + row, mask=inside, other=0)
    lse = tl.load(lse_HM + at, mask=inside, other=float("-inf"))
    lse = tl.where(lse == float("-inf"), float("inf"), lse) * 1.4426950408889634
    return first, past, lse, tl.load(delta_HM + at, mask=inside, other=0.0)


@triton.jit
def taken(
    q_MHD: tl.tensor,
    grad_MHD: tl.tensor,
    at: tl.tensor,
    rows: tl.tensor,
    head: tl.tensor,
    EDGE: tl.constexpr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """A tile of rows of q and of the gradient of out; `EDGE`: some may be past the last, and are zero."""
    row, column = tl.arange(0, ROWS), tl.arange(0, PADDED)
    places = row[:, None] * (HEADS * WIDTH) + column[None, :]
    offset = (at.to(tl.int64) * HEADS + head) * WIDTH
    if EDGE or WIDTH < PADDED:
        inside = (at + row < rows)[:, None] & (column < WIDTH)[None, :]
        q = tl.load(q_MHD + offset + places, mask=inside, other=0.0)
        grad = tl.load(grad_MHD + offset + places, mask=inside, other=0.0)
    else:
        q = tl.load(q_MHD + offset + places)
        grad = tl.load(grad_MHD + offset + places)
    return q, grad


@triton.jit
def weights(a: tl.tensor, b: tl.tensor, lse: tl.tensor, scale: tl.tensor) -> tl.tensor:
    """exp(scale a b^T - lse), [rows of a, rows of b]."""
    return tl.exp2(tl.dot(a, tl.trans(b), input_precision="ieee") * (scale * 1.4426950408889634) - lse)


@triton.jit
def given(
    dk: tl.tensor, dv: tl.tensor, p: tl.tensor, v: tl.tensor, q: tl.tensor, grad: tl.tensor, delta: tl.tensor
) -> tuple[tl.tensor, tl.tensor]:
    """dk (without the scale) and dv after some rows; p is [keys, rows]."""
    dv = tl.dot(p.to(grad.dtype), grad, dv, input_precision="ieee")
    ds = p * (tl.dot(v, tl.trans(grad), input_precision="ieee") - delta[None, :])
    return tl.dot(ds.to(q.dtype), q, dk, input_precision="ieee"), dv


@triton.jit
def added(
    into: tl.tensor,
    share: tl.tensor,
    start: tl.tensor,
    keys: tl.tensor,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    KEYS: tl.constexpr,
    FRESH: tl.constexpr,
) -> None:
    """Adds a tile of keys [keys, D] to the sums of its group."""
    key, column = start + tl.arange(0, KEYS), tl.arange(0, PADDED)
    inside = (key < keys)[:, None] & (column < WIDTH)[None, :]
    places = key.to(tl.int64)[:, None] * (GROUPS * WIDTH) + column[None, :]
    if not FRESH:
        share += tl.load(into + places, mask=inside, other=0.0)
    tl.store(into + places, share, mask=inside)
