"""Rectangles of one kind as one packed call of FlashAttention-2, whose causal squares and full ones need no mask.

Letters: M rows of queries and N rows of keys of all rectangles together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate

import torch
from torch import Tensor

from fourfold.backends.communication.aside import moved
from fourfold.backends.kernels.block_spans import stream_of
from fourfold.ir.sequence.method import Gradients
from fourfold.ir.sequence.rectangles import Rectangle

Spans = Sequence[tuple[int, int]]


def forward(q_THD: Tensor, kv_2NGD: Tensor, seen: Sequence[Rectangle], scale: float) -> tuple[Tensor, Tensor]:
    """Out [M, H, D] and lse [H, M], rectangle behind rectangle."""
    rows, keys = _counts(seen, q_THD.device)
    q_MHD, k_NGD, v_NGD = _taken(q_THD, kv_2NGD, seen)
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        q_MHD, k_NGD, v_NGD, rows, keys, _most_rows(seen), _most_keys(seen), 0.0, seen[0].square, False, scale=scale
    )
    return out, lse


def backward(
    grad_THD: Tensor,
    q_THD: Tensor,
    kv_2NGD: Tensor,
    out_THD: Tensor,
    lse_HT: Tensor,
    seen: Sequence[Rectangle],
    scale: float,
) -> Gradients:
    """The gradients of q [M, H, D], k and v [N, G, D], rectangle behind rectangle."""
    rows, keys = _counts(seen, q_THD.device)
    q_MHD, k_NGD, v_NGD = _taken(q_THD, kv_2NGD, seen)
    spans = [(one.q_at, one.q_count) for one in seen]
    grad_MHD, out_MHD = (taken(x, spans) for x in (grad_THD, out_THD))
    lse_HM = taken(lse_HT.t(), spans).t().contiguous()
    # Without dropout the generator's state is not read, but the op insists on two tensors of its kind.
    state = torch.zeros(2, dtype=torch.uint64, device=q_THD.device)
    unused = torch.empty(0, device=q_THD.device)
    dq, dk, dv = torch.ops.aten._flash_attention_backward(
        grad_MHD,
        q_MHD,
        k_NGD,
        v_NGD,
        out_MHD,
        lse_HM,
        rows,
        keys,
        _most_rows(seen),
        _most_keys(seen),
        0.0,
        seen[0].square,
        state,
        unused,
        scale=scale,
    )
    return dq, dk, dv


def taken(x_T: Tensor, spans: Spans) -> Tensor:
    """The rows of the spans, one behind the other; a view where they are neighbours."""
    runs = list(neighbours(spans))
    if len(runs) == 1:
        start, count, _ = runs[0]
        return x_T.narrow(0, start, count)
    return torch.cat([x_T.narrow(0, start, count) for start, count, _ in runs])


def neighbours(spans: Spans) -> Iterator[tuple[int, int, int]]:
    """(start, count, place of its first row in what `taken` gives) of spans joined where one follows the other."""
    start, count, at = spans[0][0], 0, 0
    for first, size in spans:
        if first != start + count:
            yield start, count, at
            start, count, at = first, 0, at + count
        count += size
    yield start, count, at


def _taken(q_THD: Tensor, kv_2NGD: Tensor, seen: Sequence[Rectangle]) -> tuple[Tensor, Tensor, Tensor]:
    k_NGD, v_NGD = (taken(x, [(one.k_at, one.k_count) for one in seen]) for x in kv_2NGD)
    return taken(q_THD, [(one.q_at, one.q_count) for one in seen]), k_NGD, v_NGD


def _most_rows(seen: Sequence[Rectangle]) -> int:
    return max(one.q_count for one in seen)


def _most_keys(seen: Sequence[Rectangle]) -> int:
    return max(one.k_count for one in seen)


def _counts(seen: Sequence[Rectangle], device: torch.device) -> tuple[Tensor, Tensor]:
    """Where rows and keys of each rectangle start, int32 [rectangles + 1]."""
    stream = stream_of(device)
    rows = _offsets(tuple(one.q_count for one in seen), device, stream)
    return rows, _offsets(tuple(one.k_count for one in seen), device, stream)


@lru_cache(maxsize=256)
def _offsets(counts: tuple[int, ...], device: torch.device, stream: int) -> Tensor:
    """On the device, for one stream: on another the copy may not be done yet."""
    return moved(torch.tensor((0, *accumulate(counts)), dtype=torch.int32), device)
