"""Packed attention by our own kernels: one call for documents of any lengths, and the same results every time.

The kernels are those of the blocks of shared attention, begun anew: nothing is read before it is written.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from fourfold.backends.kernels.attention_case import Case, Gradients, Kernel, Softmax
from fourfold.backends.kernels.block_tiles import WIDEST
from fourfold.backends.kernels.documents import Documents


def forward(
    q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, documents: Documents, softmax: Softmax
) -> tuple[Tensor, Tensor]:
    """Out [T, H, D] in the dtype of q, lse [H, T] in float32."""
    q, k, v = (x.contiguous() for x in (q_THD, k_TGD, v_TGD))
    out = torch.empty_like(q)
    lse = q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)
    _block().fresh_forward(q, k, v, out, lse, documents.lengths, softmax)
    return out, lse


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
    """The gradients of q, k and v."""
    q, k, v = (x.contiguous() for x in (q_THD, k_TGD, v_TGD))
    found = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    given = grad_THD.contiguous(), q, k, v, out_THD, lse_HT.contiguous()
    _block().fresh_backward(*given, found, documents.lengths, softmax)
    return found


def _block() -> ModuleType:
    # Triton is loaded where a GPU will use it: a CPU has no need of it, and not every system has it.
    from fourfold.backends.kernels import block_triton_packed

    return block_triton_packed


def _claims(case: Case) -> bool:
    return (
        case.device in ("cuda", "rocm")
        and (case.device == "rocm" or case.capability >= (8, 0))
        and case.dtype in (torch.bfloat16, torch.float16, torch.float32)
        and case.head_dim <= WIDEST
        and bool(case.lengths)
    )


def _suits(case: Case) -> bool:
    """On Hopper, where it took 0.72 of FlashAttention's time (benchmarks/block_kernels.py), and where that is not."""
    return case.device == "rocm" or case.capability >= (9, 0) or case.dtype == torch.float32


TRITON = Kernel("triton", claims=_claims, suits=_suits, forward=forward, backward=backward)
