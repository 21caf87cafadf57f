"""A user's own loss over chunks of logits, replayed chunk by chunk; the functions that fuse trace whole."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fourfold.backends.kernels.linear_loss import Vocabulary, gradient, statistics
from fourfold.backends.kernels.user_loss import chunked_loss, counted

FEATURES, ROWS = 6, 11
WHOLE = Vocabulary(0, ROWS)


def head(tokens: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x, weight, bias, targets (some without), weights (some 0)."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()

    targets = torch.randint(0, ROWS, (tokens,), generator=generator)
    targets[1::4] = -100
    weights = torch.rand(tokens, generator=generator)
    weights[2::5] = 0
    return draw(tokens, FEATURES), draw(ROWS, FEATURES), draw(ROWS), targets, weights


def capped(logits: Tensor, bias: Tensor) -> Tensor:
    """Scaling, a bias and a soft cap, whose backward needs its own result."""
    return torch.tanh(0.5 * logits + bias)


def assert_near(found: Sequence[Tensor], wanted: Sequence[Tensor], bound: float) -> None:
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=bound, atol=bound)


def summed(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """A user's loss: cross-entropy with label smoothing, and the supervised tokens."""
    loss = F.cross_entropy(logits, labels, reduction="sum", ignore_index=-100, label_smoothing=0.1)
    return loss, (labels != -100).sum()


@pytest.mark.parametrize("chunk", (1, 4, 100))
def test_a_users_loss_is_replayed_chunk_by_chunk(chunk: int) -> None:
    x, weight, bias, targets, weights = head(13)
    shown = targets.masked_fill(weights == 0, -100)
    wanted, count = summed(capped(x @ weight.T, bias), shown)
    total, found_count = chunked_loss(
        x,
        weight,
        targets,
        weights,
        summed,
        chunk=chunk,
        vocab=WHOLE,
        scale=2.0,
        suffix=capped,
        parameters=(bias,),
    )
    tensors = (x, weight, bias)
    assert found_count == count and not found_count.requires_grad
    found = torch.autograd.grad(total / found_count, tensors)
    assert_near((total, *found), (2 * wanted, *torch.autograd.grad(2 * wanted / count, tensors)), 1e-10)
    assert counted(targets, weights, summed, chunk=chunk, vocabulary=ROWS, dtype=x.dtype) == count
    with torch.no_grad():
        assert_near(
            chunked_loss(*tensors[:2], shown, None, summed, chunk=chunk, vocab=WHOLE)[:1],
            [summed(x @ weight.T, shown)[0]],
            1e-10,
        )


def test_a_users_loss_may_ignore_a_chunk() -> None:
    x, weight, _, _, _ = head(8)

    def first_half(logits: Tensor, labels: Tensor) -> tuple[Tensor, int]:
        return (logits.square().sum(), 1) if labels[0] == 1 else (logits.new_zeros(()), 0)

    labels = torch.tensor([1] * 4 + [0] * 4)
    total, count = chunked_loss(x, weight, labels, None, first_half, chunk=4, vocab=WHOLE)
    wanted = (x[:4] @ weight.T).square().sum()
    assert count == 1
    assert_near(torch.autograd.grad(total, (x, weight)), torch.autograd.grad(wanted, (x, weight)), 1e-10)


def test_the_functions_that_fuse_trace_whole() -> None:
    """Both softmax functions compile without a graph break and give the eager numbers, in place."""
    x, weight, _, targets, weights = (t.float() if t.is_floating_point() else t for t in head(8))
    scores = (x @ weight.T).detach()
    index = targets.clamp_min(-1)
    traced = torch.compile(statistics, backend="aot_eager", fullgraph=True)
    assert_near(traced(scores, index), statistics(scores, index), 1e-6)
    for dtype in (torch.float32, torch.bfloat16):
        first, second = scores.to(dtype, copy=True), scores.to(dtype, copy=True)
        torch.compile(gradient, backend="aot_eager", fullgraph=True)(first, index, scores.logsumexp(-1), weights)
        gradient(second, index, scores.logsumexp(-1), weights)
        assert torch.equal(first, second) and not torch.equal(first, scores.to(dtype))
