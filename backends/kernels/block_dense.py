"""One rectangle as one dense call: the CPU's flash kernel, and cuDNN's.

Both take fewer key/value heads than query heads, and both backward functions are true for the out and lse over all
keys. Letters: M rows of queries, N rows of keys.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fourfold.ir.sequence.method import Gradients, accumulation

Tensors = tuple[Tensor, Tensor, Tensor]


def cpu_forward(qkv: Tensors, *, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """Out [M, H, D] and lse [H, M]; half dtypes are computed in float32, whose matmul on a CPU is far faster."""
    wide = (_batch(x.to(accumulation(x.dtype))) for x in qkv)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*wide, 0.0, causal, scale=scale)
    return _packed(out), lse[0]


def cpu_backward(
    grad_MHD: Tensor, qkv: Tensors, out_MHD: Tensor, lse_HM: Tensor, *, causal: bool, scale: float
) -> Gradients:
    """The gradients of q, k and v."""
    kind = accumulation(grad_MHD.dtype)
    grad, q, k, v, out = (_batch(x.to(kind)) for x in (grad_MHD, *qkv, out_MHD))
    lse = lse_HM[None].contiguous()
    dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad, q, k, v, out, lse, 0.0, causal, scale=scale
    )
    return _packed(dq), _packed(dk), _packed(dv)


def cudnn_forward(qkv: Tensors, *, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """Out [M, H, D] and lse [H, M]."""
    out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        *(_batch(x) for x in qkv), None, True, 0.0, causal, False, scale=scale
    )
    # The op returns [1, H, M, 1] or [1, H, M], by version.
    return _packed(out), lse.reshape(out.shape[1:3])


def cudnn_backward(
    grad_MHD: Tensor, qkv: Tensors, out_MHD: Tensor, lse_HM: Tensor, *, causal: bool, scale: float
) -> Gradients:
    """The gradients of q, k and v."""
    grad, q, k, v, out = (_batch(x) for x in (grad_MHD, *qkv, out_MHD))
    state = torch.zeros((), dtype=torch.int64, device=q.device)
    rows, keys = q.shape[2], k.shape[2]
    lse = lse_HM[None, :, :, None].contiguous()
    dq, dk, dv = torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
        grad, q, k, v, out, lse, state, state, None, None, None, rows, keys, 0.0, causal, scale=scale
    )
    return _packed(dq), _packed(dk), _packed(dv)


def _batch(x_MHD: Tensor) -> Tensor:
    """[1, H, M, D], token-major as it was."""
    return x_MHD[None].transpose(1, 2)


def _packed(x_1HMD: Tensor) -> Tensor:
    return x_1HMD.transpose(1, 2)[0]
