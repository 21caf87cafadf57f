"""The block kernel in plain torch: the definition that every other must equal, and the one that knows bands.

Formulas (FlashAttention-2, Dao 2023): s = scale q k^T over visible pairs, lse = logsumexp(s), out = exp(s - lse) v;
backward with the lse over all keys and D = rowsum(grad * out): dv = p^T grad, ds = p (grad v^T - D), dq = scale ds k,
dk = scale ds^T q. Letters: M rows of queries, N rows of keys, R query heads a key/value head G.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fourfold.ir.sequence.method import Sums, accumulation, delta
from fourfold.ir.sequence.rectangles import Rectangle, Seen


@dataclass(frozen=True, slots=True)
class ReferenceBlock:
    """Every rectangle by its scores, written out."""

    takes_delta: bool = True

    def empty(self, q_THD: Tensor) -> Sums:
        """Sums over no key."""
        return empty(q_THD)

    def forward(self, sums: Sums, q_THD: Tensor, kv_2NGD: Tensor, seen: Seen, scale: float) -> None:
        """Adds each rectangle to the rows it has."""
        k_TGD, v_TGD = kv_2NGD
        for one in seen:
            rows, keys = _rows(one), _keys(one)
            scores_GRMN = _scores(q_THD[rows], k_TGD[keys], one, scale)
            lse_GRM = scores_GRMN.logsumexp(-1)
            p_GRMN = (scores_GRMN - _finite(lse_GRM).unsqueeze(-1)).exp()
            out_GRMD = p_GRMN @ _wide(v_TGD[keys]).transpose(0, 1).unsqueeze(1)
            mix(sums.out[rows], sums.lse[:, rows], _flat(out_GRMD), lse_GRM.flatten(0, 1))

    def merge(self, sums: Sums, out_MHD: Tensor, lse_HM: Tensor) -> None:
        """Adds an attention of the same rows over other keys."""
        mix(sums.out, sums.lse, out_MHD, lse_HM)

    def backward(
        self,
        into: tuple[Tensor, Tensor],
        grad_THD: Tensor,
        q_THD: Tensor,
        kv_2NGD: Tensor,
        out: Tensor,
        lse_HT: Tensor,
        seen: Seen,
        scale: float,
    ) -> None:
        """Adds each rectangle's share; rows that see no key at all have an lse of -inf and no share."""
        delta_HT = out if out.dim() == 2 else delta(grad_THD, out)
        k_TGD, v_TGD = kv_2NGD
        dq_THD, (dk_TGD, dv_TGD) = into
        groups = k_TGD.shape[1]
        for one in seen:
            rows, keys = _rows(one), _keys(one)
            q_GRMD, grad_GRMD = (_grouped(x[rows], groups) for x in (q_THD, grad_THD))
            k_GND, v_GND = (_wide(x[keys]).transpose(0, 1).unsqueeze(1) for x in (k_TGD, v_TGD))
            lse_GRM, delta_GRM = (x[:, rows].reshape(groups, -1, one.q_count) for x in (lse_HT, delta_HT))
            scores_GRMN = _scores(q_THD[rows], k_TGD[keys], one, scale)
            p_GRMN = (scores_GRMN - _finite(lse_GRM).unsqueeze(-1)).exp()
            ds_GRMN = p_GRMN * (grad_GRMD @ v_GND.mT - delta_GRM.unsqueeze(-1)) * scale
            dq_THD[rows] += _flat(ds_GRMN @ k_GND)
            dk_TGD[keys] += (ds_GRMN.mT @ q_GRMD).sum(1).transpose(0, 1)
            dv_TGD[keys] += (p_GRMN.mT @ grad_GRMD).sum(1).transpose(0, 1)


def empty(q_THD: Tensor) -> Sums:
    """Sums over no key."""
    kind = accumulation(q_THD.dtype)
    lse = torch.full((q_THD.shape[1], q_THD.shape[0]), float("-inf"), dtype=kind, device=q_THD.device)
    return Sums(torch.zeros(q_THD.shape, dtype=kind, device=q_THD.device), lse)


def mix(out_MHD: Tensor, lse_HM: Tensor, new_MHD: Tensor, new_HM: Tensor) -> None:
    """Adds, in place, an attention over other keys to sums; an lse of -inf stands for no key."""
    both_HM = torch.logaddexp(lse_HM, new_HM)
    share_HM = (new_HM - _finite(both_HM)).exp()
    out_MHD.lerp_(new_MHD.to(out_MHD.dtype), share_HM.t().unsqueeze(-1))
    lse_HM.copy_(both_HM)


def _scores(q_MHD: Tensor, k_NGD: Tensor, one: Rectangle, scale: float) -> Tensor:
    """[G, R, M, N], hidden pairs at -inf."""
    scores = _grouped(q_MHD, k_NGD.shape[1]) @ _wide(k_NGD).transpose(0, 1).unsqueeze(1).mT * scale
    if one.full:
        return scores
    behind_MN = torch.arange(one.k_count, device=q_MHD.device) - torch.arange(one.q_count, device=q_MHD.device)[:, None]
    hidden = torch.zeros_like(behind_MN, dtype=torch.bool)
    if one.high is not None:
        hidden |= behind_MN > one.high
    if one.low is not None:
        hidden |= behind_MN <= one.low
    return scores.masked_fill(hidden, float("-inf"))


def _rows(one: Rectangle) -> slice:
    return slice(one.q_at, one.q_at + one.q_count)


def _keys(one: Rectangle) -> slice:
    return slice(one.k_at, one.k_at + one.k_count)


def _wide(x: Tensor) -> Tensor:
    return x.to(accumulation(x.dtype))


def _grouped(x_MHD: Tensor, groups: int) -> Tensor:
    """[G, R, M, D]: query head h sits with key/value head h // R."""
    rows, heads, width = x_MHD.shape
    return _wide(x_MHD).reshape(rows, groups, heads // groups, width).permute(1, 2, 0, 3)


def _flat(x_GRMD: Tensor) -> Tensor:
    """[M, H, D]."""
    return x_GRMD.flatten(0, 1).transpose(0, 1)


def _finite(lse: Tensor) -> Tensor:
    """An lse to subtract: 0 in place of -inf, as -inf minus -inf is no number."""
    return torch.where(lse == float("-inf"), 0.0, lse)


REFERENCE_BLOCK = ReferenceBlock()
