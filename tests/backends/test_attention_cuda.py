"""The CUDA kernels' Python, run without a GPU: the aten ops they call get stand-ins behind their true schemas.

A stand-in computes by the reference, so what is proven is ours: the argument order, the batches, padding, stretches and
the shapes of the log-sum-exp. That the true ops compute the same is what benchmarks/check_attention.py shows on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from fourfold.backends.kernels import attention_cudnn
from fourfold.backends.kernels.attention import BACKWARD, named
from fourfold.backends.kernels.attention_case import Gradients, Softmax
from fourfold.backends.kernels.attention_reference import REFERENCE
from fourfold.backends.kernels.documents import Documents, Span, dense, dense_lse, packed, packed_lse

NONE = torch.empty(0)


def whole(batch_NHLD: Tensor) -> tuple[Documents, Span]:
    count, _, length, _ = batch_NHLD.shape
    return Documents.of((length,) * count, "cpu"), Span(0, length, count)


def cudnn_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    lse: bool,
    p: float = 0.0,
    causal: bool = False,
    mask: bool = False,
    *,
    scale: float,
) -> tuple[object, ...]:
    assert bias is None and lse and p == 0.0 and not mask and q.shape[2] > 1
    documents, span = whole(q)
    out, lse_HT = REFERENCE.forward(packed(q), packed(k), packed(v), documents, Softmax(scale, causal, None))
    lse_NHL = dense_lse(lse_HT, span)
    return dense(out, span), lse_NHL.unsqueeze(-1), NONE, NONE, q.shape[2], k.shape[2], NONE, NONE, NONE


def cudnn_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    seed: Tensor,
    offset: Tensor,
    bias: Tensor | None,
    cum_q: Tensor | None,
    cum_k: Tensor | None,
    max_q: int,
    max_k: int,
    p: float,
    causal: bool,
    *,
    scale: float,
) -> Gradients:
    assert bias is cum_q is cum_k is None and p == 0.0 and seed.dtype == offset.dtype == torch.int64
    assert max_q == max_k == q.shape[2] and lse.shape == (*q.shape[:3], 1) and lse.is_contiguous()
    assert grad.stride() == out.stride()
    documents, span = whole(q)
    tensors = (packed(x) for x in (grad, q, k, v, out))
    lse_HT = packed_lse(lse.squeeze(-1))
    dq, dk, dv = REFERENCE.backward(*tensors, lse_HT, documents, Softmax(scale, causal, None))
    return dense(dq, span), dense(dk, span), dense(dv, span)


def by_offsets(
    offsets: Tensor, longest: int, left: int | None, causal: bool, scale: float
) -> tuple[Documents, Softmax]:
    lengths = offsets.diff().tolist()
    assert offsets[0] == 0 and offsets.dtype == torch.int32 and longest == max(lengths)
    return Documents.of(lengths, "cpu"), Softmax(scale, causal, None if left is None else left + 1)


def flash_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cum_q: Tensor,
    cum_k: Tensor,
    max_q: int,
    max_k: int,
    p: float,
    causal: bool,
    mask: bool,
    *,
    scale: float,
    window_size_left: int | None = None,
    **others: object,
) -> tuple[Tensor, ...]:
    assert cum_q is cum_k or torch.equal(cum_q, cum_k)
    assert max_q == max_k and p == 0.0 and not mask and not any(x is not None for x in others.values())
    out, lse = REFERENCE.forward(q, k, v, *by_offsets(cum_q, max_q, window_size_left, causal, scale))
    return out, lse, NONE, NONE, NONE


def flash_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cum_q: Tensor,
    cum_k: Tensor,
    max_q: int,
    max_k: int,
    p: float,
    causal: bool,
    state: Tensor,
    unused: Tensor,
    *,
    scale: float,
    window_size_left: int | None = None,
    **others: object,
) -> Gradients:
    assert p == 0.0 and lse.is_contiguous() and state.dtype == torch.uint64 and state.shape == (2,)
    return REFERENCE.backward(grad, q, k, v, out, lse, *by_offsets(cum_q, max_q, window_size_left, causal, scale))


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The four CUDA ops on the CPU, and thresholds small enough for small documents.

    Our own kernel has none: it is interpreted in test_block_triton.py, and beside cuDNN FlashAttention is as good.
    """
    monkeypatch.setattr(attention_cudnn, "_beside", lambda q_THD: attention_cudnn.FLASH)
    monkeypatch.setattr(attention_cudnn, "WORTH_LENGTH", 4)
    monkeypatch.setattr(attention_cudnn, "WORTH_ALONE", 16)
    monkeypatch.setattr(attention_cudnn, "WORTH_TOKENS", 16)
    monkeypatch.setattr(attention_cudnn, "FINEST", 8)
    library = torch.library.Library("aten", "IMPL")
    library.impl("_scaled_dot_product_cudnn_attention", cudnn_forward, "CPU")
    library.impl("_scaled_dot_product_cudnn_attention_backward", cudnn_backward, "CPU")
    library.impl("_flash_attention_forward", flash_forward, "CPU")
    library.impl("_flash_attention_backward", flash_backward, "CPU")
    yield
    library._destroy()


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("kv_heads", (4, 2, 1))
@pytest.mark.parametrize(
    ("kernel", "lengths", "causal", "window"),
    (
        ("aten_flash", (5, 1, 9, 9, 3), True, None),
        ("aten_flash", (5, 1, 9, 9, 3), False, None),
        ("aten_flash", (5, 1, 9, 9, 3), True, 3),
        ("aten_cudnn", (8, 8, 8), True, None),
        ("aten_cudnn", (7, 7), False, None),
        ("aten_cudnn", (17, 5, 8, 31), True, None),
        ("aten_cudnn", (17, 5, 8, 31), False, None),
        ("mixed", (3, 1, 21, 2, 6, 6, 6, 1, 1, 40), True, None),
        ("mixed", (21, 40, 3, 2), True, None),
        ("mixed", (1, 19, 2), False, None),
    ),
)
def test_equals_the_reference(
    kernel: str, lengths: tuple[int, ...], causal: bool, window: int | None, kv_heads: int
) -> None:
    generator = torch.Generator().manual_seed(3)
    fused = torch.randn(sum(lengths), 4 + 2 * kv_heads, 8, dtype=torch.float64, generator=generator)
    q, k, v = fused.split((4, kv_heads, kv_heads), 1)
    grad = torch.randn(sum(lengths), 4, 8, dtype=torch.float64, generator=generator)
    documents, softmax = Documents.of(lengths, "cpu"), Softmax(0.3, causal, window)
    wanted = REFERENCE.forward(q, k, v, documents, softmax)
    found = named(kernel).forward(q, k, v, documents, softmax)
    torch.testing.assert_close([x.double() for x in found], list(wanted), rtol=1e-6, atol=1e-6)
    out, lse = wanted
    gradients = named(kernel).backward(grad, q, k, v, out, lse, documents, softmax)
    wanted_gradients = REFERENCE.backward(grad, q, k, v, out, lse, documents, softmax)
    torch.testing.assert_close(gradients, wanted_gradients, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("kernel", ("aten_flash", "aten_cudnn", "mixed"))
def test_the_gradient_of_a_sum_reaches_the_kernel_as_a_real_tensor(kernel: str) -> None:
    lengths = (24, 3, 20)
    q, k, v = torch.randn(3, 47, 2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    documents, softmax = Documents.of(lengths, "cpu"), Softmax(0.3, True, None)
    out, lse = REFERENCE.forward(q, k, v, documents, softmax)
    grad = torch.ones((), dtype=torch.float64).expand_as(out)
    found = BACKWARD(grad, q, k, v, out, lse, documents.offsets, list(lengths), 0.3, True, None, kernel)
    torch.testing.assert_close(tuple(found), REFERENCE.backward(grad, q, k, v, out, lse, documents, softmax))


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("kernel", ("aten_cudnn", "mixed"))
def test_what_stands_behind_a_document_does_not_reach_it(kernel: str) -> None:
    """It goes to the kernel with it, up to a bucket; its scores are so large that their exponentials are no number."""
    lengths, softmax = (21, 19, 40), Softmax(1.0, True, None)
    q, k, v, grad = torch.randn(4, 80, 2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    q[21:], k[21:], grad[21:] = 1e3 * q[21:], 1e3 * k[21:], 1e6
    results = []
    for documents, rows in ((Documents.of(lengths, "cpu"), slice(0, 80)), (Documents.of((21,), "cpu"), slice(0, 21))):
        tensors = [x[rows] for x in (q, k, v)]
        out, lse = named(kernel).forward(*tensors, documents, softmax)
        gradients = named(kernel).backward(grad[rows], *tensors, out.double(), lse.double(), documents, softmax)
        results.append([x[:21] for x in (out, *gradients)])
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-6)
