"""Packed attention by the flash kernels that torch carries: one for the CPU, one for CUDA.

The CPU one takes a dense batch, so documents go to it in spans of equal neighbours. The CUDA one (FlashAttention-2,
Dao 2023) takes the packed axis and the offsets in one call. Both take fewer key/value heads than query heads, and both
backward functions are true for any (out, lse) of the same rows, which is what they are given.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fourfold.backends.kernels.attention_case import Case, Gradients, Kernel, Softmax
from fourfold.backends.kernels.attention_reference import accumulation
from fourfold.backends.kernels.documents import Documents, dense, dense_lse, joined, packed, packed_lse, spans

# FlashAttention-2 in torch handles heads up to this size, in steps of 8.
FLASH_HEAD_DIM = 256


def cpu_forward(
    q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, documents: Documents, softmax: Softmax
) -> tuple[Tensor, Tensor]:
    """Out [T, H, D] and lse [H, T]; half dtypes are computed in float32, whose matmul on a CPU is far faster."""
    q, k, v = (x.to(accumulation(x.dtype)) for x in (q_THD, k_TGD, v_TGD))
    outs, lses = [], []
    for span in spans(documents.lengths):
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            dense(q, span), dense(k, span), dense(v, span), 0.0, softmax.causal, scale=softmax.scale
        )
        outs.append(packed(out))
        lses.append(packed_lse(lse))
    return joined(outs, 0, q_THD), joined(lses, 1, q.new_empty((q.shape[1], 0)))


def cpu_backward(
    grad_THD: Tensor,
    q_THD: Tensor,
    k_TGD: Tensor,
    v_TGD: Tensor,
    out_THD: Tensor,
    lse_HT: Tensor,
    documents: Documents,
    softmax: Softmax,
) -> Gradients:
    """The gradients of q, k and v, span by span."""
    grad, q, k, v, out = (x.to(accumulation(x.dtype)) for x in (grad_THD, q_THD, k_TGD, v_TGD, out_THD))
    parts: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    for span in spans(documents.lengths):
        dense_grad, dense_q, dense_k, dense_v, dense_out = (dense(x, span) for x in (grad, q, k, v, out))
        lse = dense_lse(lse_HT, span)
        found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            dense_grad, dense_q, dense_k, dense_v, dense_out, lse, 0.0, softmax.causal, scale=softmax.scale
        )
        for part, gradient in zip(parts, found, strict=True):
            part.append(packed(gradient))
    return joined(parts[0], 0, q_THD), joined(parts[1], 0, k_TGD), joined(parts[2], 0, v_TGD)


def cuda_forward(
    q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, documents: Documents, softmax: Softmax
) -> tuple[Tensor, Tensor]:
    """Out [T, H, D] and lse [H, T] of all documents in one call."""
    q, k, v = (_unit_stride(x) for x in (q_THD, k_TGD, v_TGD))
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        q,
        k,
        v,
        documents.offsets,
        documents.offsets,
        documents.longest,
        documents.longest,
        0.0,
        softmax.causal,
        False,
        scale=softmax.scale,
        window_size_left=_left(softmax),
    )
    return out, lse


def cuda_backward(
    grad_THD: Tensor,
    q_THD: Tensor,
    k_TGD: Tensor,
    v_TGD: Tensor,
    out_THD: Tensor,
    lse_HT: Tensor,
    documents: Documents,
    softmax: Softmax,
) -> Gradients:
    """The gradients of q, k and v of all documents in one call."""
    q, k, v = (_unit_stride(x) for x in (q_THD, k_TGD, v_TGD))
    # Without dropout the generator's state is not read, but the op insists on two tensors of its kind.
    state = torch.zeros(2, dtype=torch.uint64, device=q.device)
    unused = torch.empty(0, device=q.device)
    dq, dk, dv = torch.ops.aten._flash_attention_backward(
        grad_THD,
        q,
        k,
        v,
        out_THD,
        lse_HT,
        documents.offsets,
        documents.offsets,
        documents.longest,
        documents.longest,
        0.0,
        softmax.causal,
        state,
        unused,
        scale=softmax.scale,
        window_size_left=_left(softmax),
    )
    return dq, dk, dv


def _left(softmax: Softmax) -> int | None:
    """FlashAttention counts the keys to the left of the query; our window counts the query's own key too."""
    return None if softmax.window is None else softmax.window - 1


def _unit_stride(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _cpu_claims(case: Case) -> bool:
    dtypes = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    return case.device == "cpu" and case.dtype in dtypes and case.softmax.window is None


def cuda_claims(case: Case) -> bool:
    """Whether FlashAttention-2 can run the case: half dtypes, Ampere or later, heads up to 256 in steps of 8."""
    return (
        case.device == "cuda"
        and case.capability >= (8, 0)
        and case.dtype in (torch.bfloat16, torch.float16)
        and case.head_dim % 8 == 0
        and case.head_dim <= FLASH_HEAD_DIM
        and bool(case.lengths)
    )


def _always(case: Case) -> bool:
    return True


CPU_FLASH = Kernel("aten_cpu_flash", claims=_cpu_claims, suits=_always, forward=cpu_forward, backward=cpu_backward)
FLASH = Kernel("aten_flash", claims=cuda_claims, suits=_always, forward=cuda_forward, backward=cuda_backward)
