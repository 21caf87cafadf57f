"""One rectangle as one dense call: the CPU's flash kernel, and cuDNN's.

Both take fewer key/value heads than query heads, and both backward functions are true for the out and lse over all
keys. cuDNN builds a plan per shape: its rows are padded to a bucket, and those of a causal square see no key that is.
Letters: M rows of queries, N rows of keys.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fourfold.backends.kernels.attention_cudnn import bucket
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
    rows = qkv[0].shape[0]
    out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        *(_batch(x) for x in _padded(qkv, causal=causal)), None, True, 0.0, causal, False, scale=scale
    )
    # The op returns [1, H, M, 1] or [1, H, M], by version.
    return _packed(out)[:rows], lse.reshape(out.shape[1:3])[:, :rows]


def cudnn_backward(
    grad_MHD: Tensor, qkv: Tensors, out_MHD: Tensor, lse_HM: Tensor, *, causal: bool, scale: float
) -> Gradients:
    """The gradients of q, k and v. A padded row has q = grad = out = lse = 0, which adds 0 to every gradient."""
    q, k, v = (_batch(x) for x in _padded(qkv, causal=causal))
    rows, keys = q.shape[2], k.shape[2]
    grad, out = (_batch(_longer(x, rows)) for x in (grad_MHD, out_MHD))
    state = torch.zeros((), dtype=torch.int64, device=q.device)
    lse = F.pad(lse_HM, (0, rows - lse_HM.shape[1]))[None, :, :, None].contiguous()
    dq, dk, dv = torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
        grad, q, k, v, out, lse, state, state, None, None, None, rows, keys, 0.0, causal, scale=scale
    )
    return tuple(_packed(found)[: len(x)] for found, x in zip((dq, dk, dv), qkv, strict=True))  # type: ignore[return-value]


def _padded(qkv: Tensors, *, causal: bool) -> Tensors:
    """Rows in a bucket; keys beside them where each row sees those up to its own alone."""
    q_MHD, k_NGD, v_NGD = qkv
    rows = bucket(len(q_MHD))
    return _longer(q_MHD, rows), *(_longer(x, rows) if causal else x for x in (k_NGD, v_NGD))  # type: ignore[return-value]


def _longer(x_MHD: Tensor, rows: int) -> Tensor:
    """With zeros up to so many rows; itself where it has them."""
    return F.pad(x_MHD, (0, 0, 0, 0, 0, rows - len(x_MHD))) if len(x_MHD) < rows else x_MHD


def _batch(x_MHD: Tensor) -> Tensor:
    """[1, H, M, D], token-major as it was."""
    return x_MHD[None].transpose(1, 2)


def _packed(x_1HMD: Tensor) -> Tensor:
    return x_1HMD.transpose(1, 2)[0]
