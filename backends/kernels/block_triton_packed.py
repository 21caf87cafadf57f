"""Our block kernels over packed documents, each over itself, into tensors that hold nothing yet."""

from __future__ import annotations

from torch import Tensor

from fourfold.backends.kernels.attention_case import Softmax
from fourfold.backends.kernels.block_spans import Layer, packed_layer
from fourfold.backends.kernels.block_tiles import Tiles, architecture_of, tiles_for
from fourfold.backends.kernels.block_triton import delta_of, fixed
from fourfold.backends.kernels.block_triton_backward import key_kernel, query_kernel
from fourfold.backends.kernels.block_triton_forward import forward_kernel


def fresh_forward(
    q_THD: Tensor,
    k_TGD: Tensor,
    v_TGD: Tensor,
    out_THD: Tensor,
    lse_HT: Tensor,
    lengths: tuple[int, ...],
    softmax: Softmax,
    tiles: Tiles | None = None,
) -> None:
    """Writes out and lse. All tensors are contiguous; no document is empty."""
    tiles = tiles or tiles_for(architecture_of(q_THD.device), q_THD.dtype)
    layer = _layer(q_THD, lengths, softmax, tiles)
    tensors = (q_THD, k_TGD, v_TGD, out_THD, lse_HT, layer.spans_2M, layer.forward)
    tokens, heads = q_THD.shape[:2]
    forward_kernel[(len(layer.forward), heads)](
        *tensors, tokens, tokens, softmax.scale, **fixed(q_THD, k_TGD, tiles.forward, fresh=True)
    )


def fresh_backward(
    grad_THD: Tensor,
    q_THD: Tensor,
    k_TGD: Tensor,
    v_TGD: Tensor,
    out_THD: Tensor,
    lse_HT: Tensor,
    into: tuple[Tensor, Tensor, Tensor],
    lengths: tuple[int, ...],
    softmax: Softmax,
    tiles: Tiles | None = None,
) -> None:
    """Writes the gradients of q, k and v."""
    tiles = tiles or tiles_for(architecture_of(q_THD.device), q_THD.dtype)
    layer = _layer(q_THD, lengths, softmax, tiles)
    given = (q_THD, k_TGD, v_TGD, grad_THD, lse_HT, delta_of(grad_THD, out_THD))
    (tokens, heads), groups = q_THD.shape[:2], k_TGD.shape[1]
    counts, (dq, dk, dv) = (tokens, tokens, softmax.scale), into
    query_kernel[(len(layer.query), heads)](
        *given, dq, layer.spans_2M, layer.query, *counts, **fixed(q_THD, k_TGD, tiles.query, fresh=True)
    )
    key_kernel[(len(layer.key), groups)](
        *given, dk, dv, layer.spans_2M, layer.key, *counts, **fixed(q_THD, k_TGD, tiles.key, fresh=True)
    )


def _layer(q_THD: Tensor, lengths: tuple[int, ...], softmax: Softmax, tiles: Tiles) -> Layer:
    device = q_THD.device
    return packed_layer(lengths, causal=softmax.causal, window=softmax.window, sizes=tiles.sizes, device=device)
