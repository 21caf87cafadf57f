"""One rectangle as one dense call: the CPU's flash kernel, and cuDNN's.

Both take fewer key/value heads than query heads, and both backward functions are true for the out and lse over all
keys. cuDNN builds a plan per shape: rows behind those of a rectangle go along, up to a bucket; in a causal square none
sees a key behind its own.
Letters: M rows of queries, N rows of keys.
"""

from __future__ import annotations

from math import inf

import torch
import torch.nn.functional as F
from torch import Tensor

from fourfold.backends.kernels.attention_cudnn import ahead, bucket, zeroed
from fourfold.ir.sequence.method import Gradients, accumulation
from fourfold.ir.sequence.rectangles import Rectangle

Tensors = tuple[Tensor, Tensor, Tensor]


def cpu_forward(q_THD: Tensor, kv_2NGD: Tensor, one: Rectangle, *, scale: float) -> tuple[Tensor, Tensor]:
    """Out [M, H, D] and lse [H, M]; half dtypes are computed in float32, whose matmul on a CPU is far faster."""
    wide = (_batch(x.to(accumulation(x.dtype))) for x in _operands(q_THD, kv_2NGD, one))
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*wide, 0.0, one.square, scale=scale)
    return _packed(out), lse[0]


def cpu_backward(
    grad_THD: Tensor, q_THD: Tensor, kv_2NGD: Tensor, out_THD: Tensor, lse_HT: Tensor, one: Rectangle, *, scale: float
) -> Gradients:
    """The gradients of the rectangle's q, k and v."""
    kind = accumulation(grad_THD.dtype)
    grad, out = (x.narrow(0, one.q_at, one.q_count) for x in (grad_THD, out_THD))
    tensors = (_batch(x.to(kind)) for x in (grad, *_operands(q_THD, kv_2NGD, one), out))
    lse = lse_HT.narrow(1, one.q_at, one.q_count)[None].contiguous()
    dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        *tensors, lse, 0.0, one.square, scale=scale
    )
    return _packed(dq), _packed(dk), _packed(dv)


def cudnn_forward(q_THD: Tensor, kv_2NGD: Tensor, one: Rectangle, *, scale: float) -> tuple[Tensor, Tensor]:
    """Out [M, H, D] and lse [H, M]."""
    out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        *_bucketed(q_THD, kv_2NGD, one), None, True, 0.0, one.square, False, scale=scale
    )
    # The op returns [1, H, M, 1] or [1, H, M], by version.
    return _packed(out)[: one.q_count], lse.reshape(out.shape[1:3])[:, : one.q_count]


def cudnn_backward(
    grad_THD: Tensor, q_THD: Tensor, kv_2NGD: Tensor, out_THD: Tensor, lse_HT: Tensor, one: Rectangle, *, scale: float
) -> Gradients:
    """The gradients of the rectangle's q, k and v. Rows behind it have no gradient and an infinite lse, and add 0."""
    q, k, v = _bucketed(q_THD, kv_2NGD, one)
    rows, keys = q.shape[2], k.shape[2]
    grad = _batch(zeroed(grad_THD, one.q_at, one.q_count, rows))
    out = _batch(ahead(out_THD, one.q_at, one.q_count, rows))
    state = torch.zeros((), dtype=torch.int64, device=q.device)
    lse_HM = lse_HT.narrow(1, one.q_at, one.q_count)
    lse = F.pad(lse_HM, (0, rows - one.q_count), value=inf)[None, :, :, None].contiguous()
    dq, dk, dv = torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
        grad, q, k, v, out, lse, state, state, None, None, None, rows, keys, 0.0, one.square, scale=scale
    )
    return _packed(dq)[: one.q_count], _packed(dk)[: one.k_count], _packed(dv)[: one.k_count]


def _bucketed(q_THD: Tensor, kv_2NGD: Tensor, one: Rectangle) -> Tensors:
    """[1, H, M, D] each, rows in a bucket; keys beside them where each row sees those up to its own alone."""
    rows = bucket(one.q_count)
    keys = rows if one.square else one.k_count
    q = ahead(q_THD, one.q_at, one.q_count, rows)
    k, v = (ahead(x, one.k_at, one.k_count, keys) for x in kv_2NGD)
    return _batch(q), _batch(k), _batch(v)


def _operands(q_THD: Tensor, kv_2NGD: Tensor, one: Rectangle) -> Tensors:
    k, v = kv_2NGD.narrow(1, one.k_at, one.k_count)
    return q_THD.narrow(0, one.q_at, one.q_count), k, v


def _batch(x_MHD: Tensor) -> Tensor:
    """[1, H, M, D], token-major as it was."""
    return x_MHD[None].transpose(1, 2)


def _packed(x_1HMD: Tensor) -> Tensor:
    return x_1HMD.transpose(1, 2)[0]
