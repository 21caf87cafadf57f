"""Packed attention through cuDNN's dense kernel, and a mix of it with a packed kernel for batches of uneven documents.

Causal, 32 heads of 128 on an H200, TFLOP/s forward/backward: cuDNN 522/353 at 2K tokens, 626/536 at 8K and 592/532
at 32K, where FlashAttention-2 runs 262/211, 337/280 and 342/318; cuDNN's own packed form ran 375/406, hence documents
go to the dense form: equal neighbours as one batch, a long one alone. cuDNN builds a plan per new shape, so with a
causal document that goes alone go the tokens behind it, up to a bucket: at most a sixteenth, and an octave has at most
sixteen buckets. Key/value heads may be fewer than query heads: the dense op takes the group natively, in both
directions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf

import torch
import torch.nn.functional as F
from torch import Tensor

from fourfold.backends.kernels.attention_aten import FLASH
from fourfold.backends.kernels.attention_case import Case, Gradients, Kernel, Softmax
from fourfold.backends.kernels.attention_triton import TRITON
from fourfold.backends.kernels.block_tiles import WIDEST
from fourfold.backends.kernels.documents import (
    Documents,
    Span,
    dense,
    dense_lse,
    joined,
    packed,
    packed_lse,
    spans,
)

# cuDNN before 9.22 runs, in both directions, heads up to this size, in steps of 8.
CUDNN_HEAD_DIM = 128
# Equal neighbours go as one batch: below this many tokens a document does not fill the kernel, and below this many a
# call does not hide its launch. One alone of fewer than so many gains too little: with those of 1K tokens and more
# there, attention's kernels took a tenth less on an H200, steps of 48K tokens a micro-step 0.2 %; more is to launch.
WORTH_LENGTH = 512
WORTH_TOKENS = 4096
WORTH_ALONE = 4096
# Buckets an octave of lengths has, and the finest step between two of them, in tokens.
BUCKETS = 16
FINEST = 64


@dataclass(frozen=True, slots=True)
class Stretch:
    """Documents [first, stop), tokens [start, end), that a packed kernel takes in one call; `longest` in tokens."""

    first: int
    stop: int
    start: int
    end: int
    longest: int


def bucket(length: int) -> int:
    """The padded length of a document of `length` tokens: the next whole step."""
    return -(-length // step(length)) * step(length)


def step(length: int) -> int:
    """Tokens between two buckets: a sixteenth of the octave of a length."""
    return max(FINEST, (1 << (length.bit_length() - 1)) // BUCKETS)


def worth(span: Span) -> bool:
    """Whether cuDNN repays its call on this span."""
    if span.count == 1:
        return span.length >= WORTH_ALONE
    return span.length >= WORTH_LENGTH and span.tokens >= WORTH_TOKENS


def pieces(lengths: tuple[int, ...]) -> Iterator[Span | Stretch]:
    """Yield in storage order the spans cuDNN should take and, between them, the stretches a packed kernel should."""
    first = document = start = 0
    token = longest = 0
    for span in spans(lengths):
        if worth(span):
            if first < document:
                yield Stretch(first, document, start, token, longest)
            yield span
            first, start, longest = document + span.count, token + span.tokens, 0
        else:
            longest = max(longest, span.length)
        document, token = document + span.count, token + span.tokens
    if first < document:
        yield Stretch(first, document, start, token, longest)


def cudnn_forward(
    q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, documents: Documents, softmax: Softmax
) -> tuple[Tensor, Tensor]:
    """Out [T, H, D] and lse [H, T], every span of equal neighbours a dense batch."""
    parts = [_span_forward(q_THD, k_TGD, v_TGD, span, softmax) for span in spans(documents.lengths)]
    return _joined_forward(parts, q_THD)


def cudnn_backward(
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
    tensors = (grad_THD, q_THD, k_TGD, v_TGD, out_THD)
    parts = [_span_backward(tensors, lse_HT, span, softmax) for span in spans(documents.lengths)]
    return _joined_backward(parts, (q_THD, k_TGD, v_TGD))


def mixed_forward(
    q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, documents: Documents, softmax: Softmax
) -> tuple[Tensor, Tensor]:
    """Out [T, H, D] and lse [H, T]: spans worth it through cuDNN, stretches between them through a packed kernel."""
    parts = []
    for piece in _pieces(documents):
        if isinstance(piece, Span):
            parts.append(_span_forward(q_THD, k_TGD, v_TGD, piece, softmax))
            continue
        q, k, v = (x[piece.start : piece.end] for x in (q_THD, k_TGD, v_TGD))
        parts.append(_beside(q_THD).forward(q, k, v, _part(documents, piece), softmax))
    return _joined_forward(parts, q_THD)


def mixed_backward(
    grad_THD: Tensor,
    q_THD: Tensor,
    k_TGD: Tensor,
    v_TGD: Tensor,
    out_THD: Tensor,
    lse_HT: Tensor,
    documents: Documents,
    softmax: Softmax,
) -> Gradients:
    """The gradients of q, k and v, each piece by the kernel that made it."""
    tensors = (grad_THD, q_THD, k_TGD, v_TGD, out_THD)
    parts = []
    for piece in _pieces(documents):
        if isinstance(piece, Span):
            parts.append(_span_backward(tensors, lse_HT, piece, softmax))
            continue
        grad, q, k, v, out = (x[piece.start : piece.end] for x in tensors)
        lse = lse_HT[:, piece.start : piece.end].contiguous()
        parts.append(_beside(q_THD).backward(grad, q, k, v, out, lse, _part(documents, piece), softmax))
    return _joined_backward(parts, (q_THD, k_TGD, v_TGD))


def _span_forward(q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, span: Span, softmax: Softmax) -> tuple[Tensor, Tensor]:
    padding = _padding(span, softmax)
    q, k, v = (_batch(x, span, padding) for x in (q_THD, k_TGD, v_TGD))
    out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        q, k, v, None, True, 0.0, softmax.causal, False, scale=softmax.scale
    )
    # The op returns [N, H, L, 1] or [N, H, L], by version.
    lse_NHL = lse.reshape(out.shape[:3])
    return packed(out[:, :, : span.length]), packed_lse(lse_NHL[:, :, : span.length])


def _span_backward(
    tensors: tuple[Tensor, Tensor, Tensor, Tensor, Tensor], lse_HT: Tensor, span: Span, softmax: Softmax
) -> Gradients:
    padding, (grad_THD, *others) = _padding(span, softmax), tensors
    q, k, v, out = (_batch(x, span, padding) for x in others)
    grad = _batch(grad_THD, span, padding, zeroed)
    # Rows behind the document have no gradient and an infinite lse: their weights and all they give are 0.
    lse_NHL1 = F.pad(dense_lse(lse_HT, span), (0, padding), value=inf).unsqueeze(-1)
    state = torch.zeros((), dtype=torch.int64, device=q.device)
    length = span.length + padding
    dq, dk, dv = torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
        grad,
        q,
        k,
        v,
        out,
        lse_NHL1,
        state,
        state,
        None,
        None,
        None,
        length,
        length,
        0.0,
        softmax.causal,
        scale=softmax.scale,
    )
    return tuple(packed(x[:, :, : span.length]) for x in (dq, dk, dv))  # type: ignore[return-value]


def _beside(q_THD: Tensor) -> Kernel:
    """Who takes the short documents: our own kernel, where heads are not too wide for it."""
    return TRITON if q_THD.shape[2] <= WIDEST else FLASH


def _padding(span: Span, softmax: Softmax) -> int:
    """Tokens added to a document that goes alone; only causal rows never see the keys behind them."""
    return bucket(span.length) - span.length if softmax.causal and span.count == 1 else 0


def ahead(x_TD: Tensor, start: int, count: int, rows: int) -> Tensor:
    """`rows` rows, of which the first `count` are wanted: a view, unless there are not so many."""
    return x_TD[start : start + rows] if start + rows <= len(x_TD) else zeroed(x_TD, start, count, rows)


def zeroed(x_TD: Tensor, start: int, count: int, rows: int) -> Tensor:
    """`rows` rows: `count` of them, and zeros."""
    found = x_TD[start : start + count]
    return F.pad(found, (*(0, 0) * (x_TD.dim() - 1), 0, rows - count)) if rows > count else found


def _batch(x_THD: Tensor, span: Span, padding: int, taken: Callable[..., Tensor] = ahead) -> Tensor:
    """[N, H, L + padding, D], token-major; `taken` says what stands behind the span's tokens."""
    if not padding:
        return dense(x_THD, span)
    return taken(x_THD, span.start, span.length, span.length + padding)[None].transpose(1, 2)


def _pieces(documents: Documents) -> tuple[Span | Stretch, ...]:
    return documents.once("pieces", lambda: tuple(pieces(documents.lengths)))


def _part(documents: Documents, piece: Stretch) -> Documents:
    return documents.once(piece, lambda: _stretch(documents, piece))


def _stretch(documents: Documents, piece: Stretch) -> Documents:
    """The stretch's documents; the offsets are shifted on the device, so nothing waits for it."""
    offsets = documents.offsets[piece.first : piece.stop + 1] - documents.offsets[piece.first]
    return Documents(documents.lengths[piece.first : piece.stop], offsets, piece.longest)


def _joined_forward(parts: list[tuple[Tensor, Tensor]], q_THD: Tensor) -> tuple[Tensor, Tensor]:
    lse_like = q_THD.new_empty((q_THD.shape[1], 0), dtype=torch.float32)
    return joined([out for out, _ in parts], 0, q_THD), joined([lse for _, lse in parts], 1, lse_like)


def _joined_backward(parts: list[Gradients], inputs: Gradients) -> Gradients:
    dq, dk, dv = (joined([part[i] for part in parts], 0, inputs[i]) for i in range(3))
    return dq, dk, dv


def _claims(case: Case) -> bool:
    return (
        case.device == "cuda"
        and case.capability >= (8, 0)
        and case.dtype in (torch.bfloat16, torch.float16)
        and case.head_dim % 8 == 0
        and case.head_dim <= CUDNN_HEAD_DIM
        and case.softmax.window is None
        and not case.deterministic
        and min(case.lengths, default=0) > 1
    )


def _mixed_claims(case: Case) -> bool:
    dense_case = any(isinstance(piece, Span) for piece in pieces(case.lengths))
    return dense_case and FLASH.claims(case) and _claims_beside_short(case)


def _claims_beside_short(case: Case) -> bool:
    """The dense kernel's own limits, less the one on lengths: short documents go elsewhere."""
    return case.head_dim <= CUDNN_HEAD_DIM and case.softmax.window is None and not case.deterministic


def _suits(case: Case) -> bool:
    """On Hopper and later, if every span is worth it, or all documents are one batch of full kernels."""
    found = tuple(spans(case.lengths))
    if case.capability < (9, 0) or not found:
        return False
    one_batch = len(found) == 1 and found[0].length >= WORTH_LENGTH
    return one_batch or (case.softmax.causal and all(map(worth, found)))


def _mixed_suits(case: Case) -> bool:
    """On Hopper and later, causal, if a span is worth it."""
    return case.capability >= (9, 0) and case.softmax.causal


CUDNN = Kernel("aten_cudnn", claims=_claims, suits=_suits, forward=cudnn_forward, backward=cudnn_backward)
MIXED = Kernel("mixed", claims=_mixed_claims, suits=_mixed_suits, forward=mixed_forward, backward=mixed_backward)
