"""Packed attention in plain torch: the definition every other kernel must equal.

Formulas (FlashAttention-2, Dao 2023, sections 2 and 3.1), per document: s = scale q k^T with hidden scores at -inf,
lse = logsumexp(s), out = exp(s - lse) v; backward with D = rowsum(grad_out * out): dv = p^T grad_out,
ds = p (grad_out v^T - D), dq = scale ds k, dk = scale ds^T q.
Letters: N documents, G key/value heads, R query heads a key/value head, L tokens, D head dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fourfold.backends.kernels.attention_case import Case, Gradients, Kernel, Softmax
from fourfold.backends.kernels.documents import Documents, Span, dense, dense_lse, joined, packed, packed_lse, spans


def accumulation(dtype: torch.dtype) -> torch.dtype:
    """The dtype sums are kept in: float64 for float64, float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def forward(
    q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, documents: Documents, softmax: Softmax
) -> tuple[Tensor, Tensor]:
    """Out [T, H, D] in the dtype of q and lse [H, T] in the accumulation dtype; memory is quadratic in a length."""
    outs, lses = [], []
    for span in spans(documents.lengths):
        scores_NGRLL = _scores(q_THD, k_TGD, span, softmax)
        lse_NGRL = scores_NGRLL.logsumexp(-1)
        p_NGRLL = (scores_NGRLL - lse_NGRL.unsqueeze(-1)).exp()
        outs.append(packed((p_NGRLL @ _wide(v_TGD, span).unsqueeze(2)).flatten(1, 2)))
        lses.append(packed_lse(lse_NGRL.flatten(1, 2)))
    lse_like = q_THD.new_empty((q_THD.shape[1], 0), dtype=accumulation(q_THD.dtype))
    return joined(outs, 0, q_THD), joined(lses, 1, lse_like)


def backward(
    grad_THD: Tensor,
    q_THD: Tensor,
    k_TGD: Tensor,
    v_TGD: Tensor,
    out_THD: Tensor,
    lse_HT: Tensor,
    documents: Documents,
    softmax: Softmax,
) -> Gradients:
    """The gradients of q, k and v in their dtypes, from the saved out and lse."""
    parts: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    for span in spans(documents.lengths):
        q, grad, out = (_grouped(x, k_TGD.shape[1], span) for x in (q_THD, grad_THD, out_THD))
        k, v = (_wide(x, span).unsqueeze(2) for x in (k_TGD, v_TGD))
        lse = dense_lse(lse_HT, span).reshape(span.count, k_TGD.shape[1], -1, span.length)
        p = (_scores(q_THD, k_TGD, span, softmax) - lse.unsqueeze(-1)).exp()
        ds = p * (grad @ v.mT - (grad * out).sum(-1, keepdim=True)) * softmax.scale
        parts[0].append(packed((ds @ k).flatten(1, 2)))
        parts[1].append(packed((ds.mT @ q).sum(2)))
        parts[2].append(packed((p.mT @ grad).sum(2)))
    return joined(parts[0], 0, q_THD), joined(parts[1], 0, k_TGD), joined(parts[2], 0, v_TGD)


def _wide(x_THD: Tensor, span: Span) -> Tensor:
    return dense(x_THD, span).to(accumulation(x_THD.dtype))


def _grouped(x_THD: Tensor, kv_heads: int, span: Span) -> Tensor:
    """[N, G, R, L, D]: query head h sits with key/value head h // R."""
    return _wide(x_THD, span).reshape(span.count, kv_heads, -1, span.length, x_THD.shape[2])


def _scores(q_THD: Tensor, k_TGD: Tensor, span: Span, softmax: Softmax) -> Tensor:
    q_NGRLD = _grouped(q_THD, k_TGD.shape[1], span)
    scores = q_NGRLD @ _wide(k_TGD, span).unsqueeze(2).mT * softmax.scale
    return scores.masked_fill(~_visible(span.length, softmax, q_THD.device), float("-inf"))


def _visible(length: int, softmax: Softmax, device: torch.device) -> Tensor:
    """Bool [L queries, L keys]: which key each query sees."""
    position = torch.arange(length, device=device)
    behind = position.unsqueeze(1) - position
    seen = behind >= 0 if softmax.causal else torch.ones_like(behind, dtype=torch.bool)
    return seen if softmax.window is None else seen & (behind < softmax.window)


def _always(case: Case) -> bool:
    return True


REFERENCE = Kernel("reference", claims=_always, suits=_always, forward=forward, backward=backward)
