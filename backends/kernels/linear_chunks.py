"""A linear layer followed by a loss, chunk of tokens by chunk of tokens: no [tokens, vocabulary] tensor ever exists.

The logits of a chunk are computed once. Where gradients are wanted the loss hands back the gradient of those logits at
once, which gives dx of the chunk and adds to dW, so that forward and backward together cost three matmuls and backward
itself only multiplies by one number. Letters: T tokens, C tokens of a chunk, D features, V rows of the weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from fourfold.hardware.errors import ModelError


@dataclass(frozen=True, slots=True)
class Piece:
    """What one chunk gave: the loss, what it counted, and the gradients of the logits and of each parameter.

    gradients: () if none were asked for; an entry is None where the loss does not depend on that tensor.
    """

    total: Tensor
    count: Tensor
    gradients: tuple[Tensor | None, ...] = ()


class Objective(Protocol):
    """A loss of one chunk of logits; it may overwrite them."""

    def __call__(self, logits_CV: Tensor, rows: slice, parameters: Sequence[Tensor], *, differentiate: bool) -> Piece:
        """The loss of tokens `rows`, with gradients if `differentiate`; grad mode is off on entry."""


@dataclass(frozen=True, slots=True)
class Swept:
    """The loss and count of all chunks, and the gradients of x, the weight and each parameter (None: unwanted)."""

    total: Tensor
    count: Tensor
    gradients: tuple[Tensor | None, ...]


def chunked(
    x_TD: Tensor, weight_VD: Tensor, objective: Objective, *, chunk: int, parameters: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """The objective's total and count over all tokens; the total is differentiable in x, weight and parameters."""
    if x_TD.dtype != weight_VD.dtype or x_TD.shape[1] != weight_VD.shape[1]:
        raise ModelError(
            f"loss head of x {tuple(x_TD.shape)} {x_TD.dtype} and weight {tuple(weight_VD.shape)} {weight_VD.dtype}: "
            "both must have one dtype and one feature size"
        )
    if chunk < 1:
        raise ModelError(f"loss head in chunks of {chunk} tokens: a chunk has 1 or more")
    tensors = (x_TD, weight_VD, *parameters)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        total, count = _Chunked.apply(objective, chunk, *tensors)  # type: ignore[no-untyped-call]
        return total, count
    with torch.no_grad():
        swept = sweep(objective, chunk, tensors, wanted=(False,) * len(tensors))
    return swept.total, swept.count


def sweep(objective: Objective, chunk: int, tensors: Sequence[Tensor], *, wanted: Sequence[bool]) -> Swept:
    """The loss of all chunks and the gradients of those of `tensors` (x, weight, *parameters) that are wanted.

    Half dtypes on the CPU are computed in float32, whose matmul there is far faster. Gradients come in the dtypes of
    their tensors; those of the weight and the parameters are summed over chunks in float32 at least.
    """
    x_TD, weight_VD, *parameters = (_computed(tensor) for tensor in tensors)
    dx = torch.zeros_like(x_TD) if wanted[0] else None
    sums = [_zeros(tensor) if want else None for tensor, want in zip(tensors[1:], wanted[1:], strict=True)]
    leaves = [p.detach().requires_grad_(want) for p, want in zip(parameters, wanted[2:], strict=True)]
    total = torch.zeros((), dtype=_wide(x_TD.dtype), device=x_TD.device)
    count = torch.zeros_like(total)
    buffer_CV = x_TD.new_empty((min(chunk, x_TD.shape[0]), weight_VD.shape[0]))
    for start in range(0, x_TD.shape[0], chunk):
        rows = slice(start, min(start + chunk, x_TD.shape[0]))
        logits_CV = torch.mm(x_TD[rows], weight_VD.t(), out=buffer_CV[: rows.stop - start])
        piece = objective(logits_CV, rows, leaves, differentiate=any(wanted))
        total += piece.total
        count += piece.count
        if piece.gradients:
            _add(piece.gradients, x_TD[rows], weight_VD, dx[rows] if dx is not None else None, sums)
    gradients = (g.to(t.dtype) if g is not None else None for g, t in zip((dx, *sums), tensors, strict=True))
    return Swept(total, count, tuple(gradients))


def _add(
    gradients: tuple[Tensor | None, ...],
    x_CD: Tensor,
    weight_VD: Tensor,
    dx_CD: Tensor | None,
    sums: Sequence[Tensor | None],
) -> None:
    """Write dx of the chunk and add the chunk's share to the sums, of which the first is dW."""
    grad_CV, *others = gradients
    for total, other in zip(sums[1:], others, strict=True):
        if total is not None and other is not None:
            total += other
    if grad_CV is None:
        return
    if dx_CD is not None:
        torch.mm(grad_CV, weight_VD, out=dx_CD)
    dw_VD = sums[0]
    if dw_VD is None:
        return
    if dw_VD.dtype == grad_CV.dtype:
        dw_VD.addmm_(grad_CV.t(), x_CD)
    else:
        torch.addmm(dw_VD, grad_CV.t(), x_CD, out_dtype=dw_VD.dtype, out=dw_VD)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _computed(tensor: Tensor) -> Tensor:
    """The tensor in the dtype it is computed in, out of reach of autograd."""
    return tensor.detach() if tensor.is_cuda else tensor.detach().to(_wide(tensor.dtype))


def _zeros(tensor: Tensor) -> Tensor:
    return torch.zeros(tensor.shape, dtype=_wide(tensor.dtype), device=tensor.device)


class _Chunked(torch.autograd.Function):
    """Gradients are made in forward, in final dtypes, and backward scales them."""

    @staticmethod
    def forward(ctx: Any, objective: Objective, chunk: int, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        swept = sweep(objective, chunk, tensors, wanted=ctx.needs_input_grad[2:])
        ctx.save_for_backward(*swept.gradients)
        ctx.mark_non_differentiable(swept.count)
        ctx.set_materialize_grads(False)
        return swept.total, swept.count

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * (2 + len(ctx.needs_input_grad[2:]))
        return (None, None, *(None if g is None else g * grad.to(g.dtype) for g in ctx.saved_tensors))
