"""Packed attention: every kernel that runs here equals plain SDPA document by document, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from fourfold.backends.kernels import attention
from fourfold.backends.kernels.attention import FORWARD, KERNELS, attend
from fourfold.backends.kernels.attention_case import Kernel, Softmax
from fourfold.backends.kernels.documents import Documents
from fourfold.hardware.errors import ModelError, RunError

RAGGED = (5, 1, 0, 9, 9, 3)
BOUND = {torch.float64: 1e-10, torch.float32: 1e-5}
HERE = ("aten_cpu_flash", "reference")


def inputs(
    lengths: Sequence[int], heads: int, kv_heads: int, dtype: torch.dtype, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random q, k, v, which want gradients, and the gradient of the output."""
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int) -> Tensor:
        return torch.randn(sum(lengths), count, 8, dtype=torch.float64, generator=generator).to(dtype)

    q, k, v = (draw(count).requires_grad_() for count in (heads, kv_heads, kv_heads))
    return q, k, v, draw(heads)


def per_document(
    q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], scale: float, causal: bool, window: int | None
) -> Tensor:
    """The plain answer: torch's own attention, one document at a time."""
    outs = []
    for one in zip(*(x.split(list(lengths)) for x in (q, k, v)), strict=True):
        q_HLD, k_GLD, v_GLD = (x.transpose(0, 1) for x in one)
        behind = torch.arange(q_HLD.shape[1])[:, None] - torch.arange(q_HLD.shape[1])
        seen = torch.ones_like(behind, dtype=torch.bool) if not causal else behind >= 0
        seen = seen if window is None else seen & (behind < window)
        out = F.scaled_dot_product_attention(q_HLD, k_GLD, v_GLD, attn_mask=seen, scale=scale, enable_gqa=True)
        outs.append(out.transpose(0, 1))
    return torch.cat(outs)


def assert_equals_plain(
    lengths: Sequence[int], heads: int, kv_heads: int, dtype: torch.dtype, causal: bool, window: int | None, kernel: str
) -> None:
    q, k, v, grad = inputs(lengths, heads, kv_heads, dtype)
    out = attend(q, k, v, Documents.of(lengths, "cpu"), scale=0.3, causal=causal, window=window, kernel=kernel)
    found = (out, *torch.autograd.grad(out, (q, k, v), grad))
    plain = per_document(q, k, v, lengths, 0.3, causal, window)
    wanted = (plain, *torch.autograd.grad(plain, (q, k, v), grad))
    for one, other in zip(found, wanted, strict=True):
        assert one.is_contiguous() and one.dtype == dtype
        torch.testing.assert_close(one, other, rtol=BOUND[dtype], atol=BOUND[dtype])


@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize("kv_heads", (4, 2, 1))
@pytest.mark.parametrize("causal", (True, False))
@pytest.mark.parametrize("kernel", HERE)
def test_equals_plain_attention_document_by_document(
    dtype: torch.dtype, kv_heads: int, causal: bool, kernel: str
) -> None:
    assert_equals_plain(RAGGED, 4, kv_heads, dtype, causal, None, kernel)


@pytest.mark.parametrize("window", (1, 2, 4, 100))
@pytest.mark.parametrize("causal", (True, False))
def test_a_window_counts_the_token_itself(window: int, causal: bool) -> None:
    assert_equals_plain(RAGGED, 4, 2, torch.float64, causal, window, "reference")


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 12), max_size=6).filter(lambda lengths: sum(lengths) > 0))
def test_any_lengths(lengths: list[int]) -> None:
    for kernel in HERE:
        assert_equals_plain(lengths, 2, 1, torch.float64, True, None, kernel)


def test_no_token_at_all() -> None:
    q, k, v, grad = inputs((), 2, 1, torch.float32)
    out = attend(q, k, v, Documents.of((0, 0), "cpu"), scale=1.0, causal=True)
    assert out.shape == (0, 2, 8)
    assert [tuple(g.shape) for g in torch.autograd.grad(out, (q, k, v), grad)] == [(0, 2, 8), (0, 1, 8), (0, 1, 8)]


@pytest.mark.parametrize("kernel", HERE)
def test_no_document_reads_another(kernel: str) -> None:
    """Position-coded values give the mean of the visible indices, and a poisoned neighbour poisons nobody else."""
    lengths = (3, 4, 2)
    q = torch.zeros(9, 1, 8, dtype=torch.float64)
    v = torch.arange(9, dtype=torch.float64)[:, None, None].expand(9, 1, 8).clone()
    documents = Documents.of(lengths, "cpu")
    out = attend(q, q, v, documents, scale=1.0, causal=True, kernel=kernel)
    assert out[:, 0, 0].tolist() == pytest.approx([0, 0.5, 1, 3, 3.5, 4, 4.5, 7, 7.5])
    q, k, v, grad = inputs(lengths, 1, 1, torch.float64)
    with torch.no_grad():
        for x in (q, k, v, grad):
            x[3:7] = float("nan")
    out = attend(q, k, v, documents, scale=1.0, causal=True, kernel=kernel)
    for x in (out, *torch.autograd.grad(out, (q, k, v), grad)):
        assert torch.isfinite(x[:3]).all() and torch.isfinite(x[7:]).all() and x[3:7].isnan().all()


@pytest.mark.parametrize("kernel", HERE)
def test_scores_of_ten_thousand_do_not_overflow(kernel: str) -> None:
    q, k, v, grad = inputs((6, 3), 2, 1, torch.float32)
    out = attend(q, k, v, Documents.of((6, 3), "cpu"), scale=1e4, causal=True, kernel=kernel)
    for x in (out, *torch.autograd.grad(out, (q, k, v), grad)):
        assert torch.isfinite(x).all()


@pytest.mark.parametrize("kernel", HERE)
def test_bf16_on_the_cpu_accumulates_in_float32(kernel: str) -> None:
    q, k, v, grad = inputs(RAGGED, 4, 2, torch.bfloat16)
    out = attend(q, k, v, Documents.of(RAGGED, "cpu"), scale=0.3, causal=True, kernel=kernel)
    wide = [x.detach().double().requires_grad_() for x in (q, k, v)]
    plain = per_document(*wide, RAGGED, 0.3, True, None)
    wanted = (plain, *torch.autograd.grad(plain, wide, grad.double()))
    for one, other in zip((out, *torch.autograd.grad(out, (q, k, v), grad)), wanted, strict=True):
        assert one.dtype == torch.bfloat16
        assert (one.double() - other).norm() <= 6e-3 * other.norm()


@pytest.mark.parametrize("kernel", HERE)
def test_backward_is_true_for_a_part_of_the_keys(kernel: str) -> None:
    """The backward takes a global out and lse: fed those of all keys, it gives this half's share of the gradients."""
    generator = torch.Generator().manual_seed(1)
    q, k, v, grad = (torch.randn(6, 1, 8, dtype=torch.float64, generator=generator) for _ in range(4))
    wide_k, wide_v = (torch.cat((x, x.roll(1, 0))) for x in (k, v))
    scores = q[:, 0] @ wide_k[:, 0].T * 0.3
    p = scores.softmax(-1)
    out, lse = (p @ wide_v[:, 0])[:, None], scores.logsumexp(-1)[None]
    ds = p * (grad[:, 0] @ wide_v[:, 0].T - (grad * out).sum((1, 2))[:, None]) * 0.3
    wanted = (ds[:, :6] @ k[:, 0], ds[:, :6].T @ q[:, 0], p[:, :6].T @ grad[:, 0])
    documents = Documents.of((6,), "cpu")
    found = attention.named(kernel).backward(grad, q, k, v, out, lse, documents, Softmax(0.3, False, None))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one[:, 0], other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kernel", HERE)
def test_lse_is_the_natural_log_sum_by_head_and_token(kernel: str) -> None:
    q, k, v, _ = inputs((2, 3), 2, 1, torch.float64)
    out, lse = FORWARD(q, k, v, Documents.of((2, 3), "cpu").offsets, [2, 3], 0.3, False, None, kernel)
    assert out.requires_grad and not lse.requires_grad
    wanted = torch.cat([(q[a:b].transpose(0, 1) @ k[a:b, 0].T * 0.3).logsumexp(-1) for a, b in ((0, 2), (2, 5))], 1)
    torch.testing.assert_close(lse, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kernel", HERE)
@pytest.mark.parametrize("wanting", ((0,), (1,), (2,), (0, 2)))
def test_only_some_inputs_want_a_gradient_and_views_do_as_well(kernel: str, wanting: tuple[int, ...]) -> None:
    fused = torch.randn(sum(RAGGED), 4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    tensors = [x.detach() for x in fused.split((2, 1, 1), 1)]
    plain = [x.clone() for x in tensors]
    for index in wanting:
        tensors[index].requires_grad_()
        plain[index].requires_grad_()
    out = attend(*tensors, Documents.of(RAGGED, "cpu"), scale=0.3, causal=True, kernel=kernel)
    other = per_document(*plain, RAGGED, 0.3, True, None)
    found = torch.autograd.grad(out.sum(), [tensors[i] for i in wanting])
    wanted = torch.autograd.grad(other.sum(), [plain[i] for i in wanting])
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kernel", HERE)
def test_the_ops_are_well_formed(kernel: str) -> None:
    q, k, v, _ = inputs(RAGGED, 2, 1, torch.float64)
    documents = Documents.of(RAGGED, "cpu")
    rest = (documents.offsets, list(documents.lengths), 0.3, True, None, kernel)
    torch.library.opcheck(FORWARD, (q, k, v, *rest))
    with torch.no_grad():
        out, lse = FORWARD(q, k, v, *rest)
        torch.library.opcheck(attention.BACKWARD, (out, q.detach(), k.detach(), v.detach(), out, lse, *rest))


def test_gradients_by_finite_differences() -> None:
    q, k, v, _ = inputs((3, 1, 2), 2, 1, torch.float64)
    documents = Documents.of((3, 1, 2), "cpu")

    def function(*tensors: Tensor) -> Tensor:
        return attend(*tensors, documents, scale=0.3, causal=True)

    assert torch.autograd.gradcheck(function, (q, k, v))


def test_a_second_derivative_is_refused() -> None:
    """Its backward takes out and lse for constants."""
    q, k, v, _ = inputs((3, 1, 2), 2, 1, torch.float64)
    out = attend(q, k, v, Documents.of((3, 1, 2), "cpu"), scale=0.3, causal=True, kernel="reference")
    (first,) = torch.autograd.grad((out**2).sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        (first**2).sum().backward()  # type: ignore[no-untyped-call]


def test_recompute_that_saves_the_op_runs_the_kernel_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def counted(kernel: Kernel) -> Kernel:
        def forward(*args: object) -> tuple[Tensor, Tensor]:
            calls.append(kernel.name)
            return kernel.forward(*args)  # type: ignore[arg-type]

        return replace(kernel, forward=forward)

    monkeypatch.setattr(attention, "KERNELS", tuple(counted(kernel) for kernel in KERNELS))
    documents = Documents.of(RAGGED, "cpu")

    def block(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q.sin(), k.sin(), v.sin(), documents, scale=0.3, causal=True).sin()

    def policy(_: object, op: object, *args: object, **kwargs: object) -> CheckpointPolicy:
        return CheckpointPolicy.MUST_SAVE if op is FORWARD else CheckpointPolicy.PREFER_RECOMPUTE

    q, k, v, grad = inputs(RAGGED, 2, 1, torch.float64)
    wanted = torch.autograd.grad(block(q, k, v), (q, k, v), grad)
    calls.clear()
    out = checkpoint(
        block, q, k, v, use_reentrant=False, context_fn=lambda: create_selective_checkpoint_contexts(policy)
    )
    found = torch.autograd.grad(out, (q, k, v), grad)
    assert calls == ["aten_cpu_flash"]
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_mistakes_are_named() -> None:
    q, k, v, _ = inputs((4,), 4, 2, torch.float32)
    documents = Documents.of((4,), "cpu")
    with pytest.raises(RunError, match="documents of 3 tokens describe tensors of 4"):
        attend(q, k, v, Documents.of((3,), "cpu"), scale=1.0, causal=True)
    with pytest.raises(ModelError, match="4 query heads over 3"):
        attend(q, k[:, :1].repeat(1, 3, 1), v[:, :1].repeat(1, 3, 1), documents, scale=1.0, causal=True)
    with pytest.raises(ModelError, match="shaped"):
        attend(q, k[:2], v, documents, scale=1.0, causal=True)
    with pytest.raises(ModelError, match="window 0"):
        attend(q, k, v, documents, scale=1.0, causal=True, window=0)
    with pytest.raises(RunError, match=r"aten_flash does not run .* these do: aten_cpu_flash, reference"):
        attend(q, k, v, documents, scale=1.0, causal=True, kernel="aten_flash")
    with pytest.raises(RunError, match="no attention kernel is called fast"):
        attend(q, k, v, documents, scale=1.0, causal=True, kernel="fast")
    with pytest.raises(RunError, match="negative"):
        Documents.of((3, -1), "cpu")
