"""The fused loss head equals F.cross_entropy on full logits: loss and gradients, whole and cut vocabularies."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fourfold.backends.kernels import linear_chunks, linear_loss
from fourfold.backends.kernels.linear_loss import Vocabulary, linear_cross_entropy
from fourfold.backends.kernels.user_loss import chunked_loss
from fourfold.hardware.errors import ModelError

BOUND = {torch.float64: 1e-10, torch.float32: 1e-5}
FEATURES, ROWS = 6, 11


@dataclass(frozen=True)
class Head:
    """Inputs of a loss head over `tokens`, some of them without a target, one of weight 0."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    targets: Tensor
    weights: Tensor


def head(tokens: int, dtype: torch.dtype, seed: int = 0) -> Head:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()

    targets = torch.randint(0, ROWS, (tokens,), generator=generator)
    targets[1::4] = -100
    weights = torch.rand(tokens, generator=generator)
    weights[2::5] = 0
    return Head(draw(tokens, FEATURES), draw(ROWS, FEATURES), draw(ROWS), targets, weights)


def plain(one: Head, suffix: Callable[..., Tensor] | None, scale: float) -> Tensor:
    """The definition: full logits, torch's cross-entropy, weighted sum."""
    logits = one.x @ one.weight.T
    logits = logits if suffix is None else suffix(logits, one.bias)
    losses = F.cross_entropy(logits, one.targets, reduction="none", ignore_index=-100)
    return (losses * one.weights.to(losses.dtype)).sum() * scale


def capped(logits: Tensor, bias: Tensor) -> Tensor:
    """Scaling, a bias and a soft cap, whose backward needs its own result."""
    return torch.tanh(0.5 * logits + bias)


@dataclass
class Ring:
    """An in-place all-reduce over threads, in rank order; counts its calls."""

    ranks: int
    calls: list[str] = field(default_factory=list)
    held: list[Tensor | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(self.ranks)
        self.held = [None] * self.ranks

    def reduce(self, rank: int) -> Callable[[Tensor, Literal["max", "sum"]], None]:
        def call(tensor: Tensor, how: Literal["max", "sum"]) -> None:
            self.held[rank] = tensor.clone()
            if rank == 0:
                self.calls.append(how)
            self.barrier.wait(10)
            parts = torch.stack([part for part in self.held if part is not None])
            tensor.copy_(parts.amax(0) if how == "max" else parts.sum(0))
            self.barrier.wait(10)

        return call


def cut(
    one: Head, ranks: int, suffix: Callable[..., Tensor] | None, *, scale: float, chunk: int
) -> tuple[list[Tensor], Tensor, Tensor, Tensor | None, list[str]]:
    """Every rank's loss, dx summed over ranks, dW and dbias joined over ranks, and the reductions one rank made."""
    ring = Ring(ranks)
    bounds = [ROWS * rank // ranks for rank in range(ranks + 1)]

    def work(rank: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        mine = slice(bounds[rank], bounds[rank + 1])
        x, weight, bias = (t.detach().clone().requires_grad_() for t in (one.x, one.weight[mine], one.bias[mine]))
        vocab = Vocabulary(bounds[rank], bounds[rank + 1], ring.reduce(rank))
        loss = linear_cross_entropy(
            x,
            weight,
            one.targets,
            one.weights,
            scale=scale,
            chunk=chunk,
            vocab=vocab,
            suffix=suffix,
            parameters=(bias,) if suffix is not None else (),
        )
        wanted = (x, weight, bias) if suffix is not None else (x, weight)
        return loss.detach(), torch.autograd.grad(loss, wanted)

    with ThreadPoolExecutor(ranks) as pool:
        found = list(pool.map(work, range(ranks)))
    gradients = list(zip(*(grads for _, grads in found), strict=True))
    dx = torch.stack(gradients[0]).sum(0)
    dbias = torch.cat(gradients[2]) if suffix is not None else None
    return [loss for loss, _ in found], dx, torch.cat(gradients[1]), dbias, ring.calls


def assert_near(found: Sequence[Tensor], wanted: Sequence[Tensor], bound: float) -> None:
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=bound, atol=bound)


@pytest.mark.parametrize("ranks", (1, 2, 3))
@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize("suffix", (None, capped))
@pytest.mark.parametrize("chunk", (1, 4, 100))
def test_equals_cross_entropy_on_full_logits(
    ranks: int, dtype: torch.dtype, suffix: Callable[..., Tensor] | None, chunk: int
) -> None:
    one = head(13, dtype)
    losses, dx, dw, dbias, calls = cut(one, ranks, suffix, scale=0.7, chunk=chunk)
    wanted = plain(one, suffix, 0.7)
    tensors = (one.x, one.weight) if suffix is None else (one.x, one.weight, one.bias)
    gradients = torch.autograd.grad(wanted, tensors)
    assert all(torch.equal(loss, losses[0]) for loss in losses)
    assert_near((losses[0], dx, dw), (wanted.detach(), *gradients[:2]), BOUND[dtype])
    if dbias is not None:
        assert_near((dbias,), gradients[2:], BOUND[dtype])
    assert calls == ["max", "sum"] * -(-13 // chunk)


@settings(max_examples=25, deadline=None)
@given(tokens=st.integers(0, 20), chunk=st.integers(1, 25), ranks=st.integers(1, 3), seed=st.integers(0, 99))
def test_any_tokens_and_chunks(tokens: int, chunk: int, ranks: int, seed: int) -> None:
    one = head(tokens, torch.float64, seed)
    losses, dx, dw, _, _ = cut(one, ranks, None, scale=1.0, chunk=chunk)
    wanted = plain(one, None, 1.0)
    assert_near((losses[0], dx, dw), (wanted.detach(), *torch.autograd.grad(wanted, (one.x, one.weight))), 1e-10)


def whole(one: Head, **options: object) -> Tensor:
    chosen = {"scale": 1.0, "chunk": 4, "vocab": Vocabulary(0, ROWS), **options}
    return linear_cross_entropy(one.x, one.weight, one.targets, one.weights, **chosen)  # type: ignore[arg-type]


@pytest.mark.parametrize("masked", ("targets", "weights"))
def test_without_a_target_everything_is_exactly_zero(masked: str) -> None:
    one = head(9, torch.float32)
    if masked == "targets":
        one.targets.fill_(-100)
    else:
        one.weights.zero_()
    with torch.no_grad():
        one.x[3] = 1e38
    assert not torch.isfinite(one.x @ one.weight.T).all()
    loss = whole(one)
    dx, dw = torch.autograd.grad(loss, (one.x, one.weight))
    assert loss == 0.0 and not dx.any() and not dw.any()


def test_missing_weights_are_ones_and_the_gradient_is_scaled() -> None:
    one = head(9, torch.float64)
    loss = linear_cross_entropy(one.x, one.weight, one.targets, None, scale=0.5, chunk=4, vocab=Vocabulary(0, ROWS))
    wanted = F.cross_entropy(one.x @ one.weight.T, one.targets, reduction="sum") * 0.5
    assert_near((loss,), (wanted,), 1e-10)
    found = torch.autograd.grad(loss * 3.0, (one.x, one.weight))
    assert_near(found, torch.autograd.grad(wanted * 3.0, (one.x, one.weight)), 1e-10)


@pytest.mark.parametrize("frozen", ("x", "weight"))
def test_a_frozen_side_gets_no_gradient_and_the_other_its_own(
    frozen: Literal["x", "weight"], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = head(9, torch.float64)
    other = one.weight if frozen == "x" else one.x
    wanted = torch.autograd.grad(plain(one, None, 1.0), (other,))
    (one.x if frozen == "x" else one.weight).requires_grad_(False)
    assert_near(torch.autograd.grad(whole(one), (other,)), wanted, 1e-10)
    made: list[tuple[int, ...]] = []
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *a, **k: made.append(tuple(a[0])) or zeros(*a, **k))
    whole(one)
    assert ((ROWS, FEATURES) in made) is (frozen == "x")


def test_evaluation_makes_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    one = head(9, torch.float64)
    wanted = whole(one)
    assert wanted.requires_grad
    monkeypatch.setattr(linear_loss, "gradient", None)
    with torch.no_grad():
        loss = whole(one)
        loss_capped = whole(one, suffix=capped, parameters=(one.bias,))
    assert not loss.requires_grad and loss == wanted
    assert_near((loss_capped,), (plain(one, capped, 1.0).detach(),), 1e-10)


def test_logits_exist_for_one_chunk_and_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three matmuls a chunk, and beside the weight itself no matrix of vocabulary width but the chunk's."""
    one = head(12, torch.float64)
    shapes: list[tuple[int, ...]] = []
    products = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal products
            found = function(*args, **(kwargs or {}))
            products += function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm_, torch.ops.aten.addmm)
            if isinstance(found, Tensor):
                shapes.append(tuple(found.shape))
            return found

    with Watch():
        whole(one).backward()
    assert products == 3 * 3
    assert {shape[0] for shape in shapes if len(shape) == 2 and shape[1] == ROWS} == {4, FEATURES}


def test_bf16_keeps_sums_in_float32() -> None:
    """Many chunks do no worse than one: the weight's gradient is not added up in bf16."""
    one = head(512, torch.bfloat16)
    wide = Head(
        *(t.detach().double().requires_grad_() for t in (one.x, one.weight, one.bias)), one.targets, one.weights
    )
    wanted = plain(wide, None, 1 / 512)
    gradients = torch.autograd.grad(wanted, (wide.x, wide.weight))
    loss = whole(one, scale=1 / 512, chunk=2)
    assert loss.dtype == torch.float32 and abs(loss.item() - wanted.item()) <= 1e-5 * wanted.item()
    for found, other in zip(torch.autograd.grad(loss, (one.x, one.weight)), gradients, strict=True):
        assert found.dtype == torch.bfloat16 and (found.double() - other).norm() <= 3e-3 * other.norm()


def test_half_products_add_into_the_float32_sum_where_the_device_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """The branch a GPU takes, with a stand-in behind the true schema of the one op the CPU lacks."""

    def into(self: Tensor, a: Tensor, b: Tensor, dtype: torch.dtype, *, out: Tensor, **_: object) -> Tensor:
        assert dtype == out.dtype == torch.float32 and a.dtype == b.dtype == torch.bfloat16
        return out.copy_(self + a.float() @ b.float())

    library = torch.library.Library("aten", "IMPL")
    library.impl("addmm.dtype_out", into, "CPU")
    monkeypatch.setattr(linear_chunks, "_computed", Tensor.detach)
    one = head(64, torch.bfloat16)
    wide = Head(
        *(t.detach().double().requires_grad_() for t in (one.x, one.weight, one.bias)), one.targets, one.weights
    )
    gradients = torch.autograd.grad(plain(wide, None, 1 / 64), (wide.x, wide.weight))
    found = torch.autograd.grad(whole(one, scale=1 / 64), (one.x, one.weight))
    library._destroy()
    for got, other in zip(found, gradients, strict=True):
        assert got.dtype == torch.bfloat16 and (got.double() - other).norm() <= 1e-2 * other.norm()


def test_hidden_logits_and_large_ones_stay_finite() -> None:
    """A suffix may hide rows (a padded vocabulary), even all of a rank's, and scores of 1e4 do not overflow."""
    one = head(9, torch.float64)
    one.targets.clamp_(max=3)

    def hidden(logits: Tensor, bias: Tensor) -> Tensor:
        return (1e4 * logits).masked_fill(bias > 0.5, float("-inf"))

    with torch.no_grad():
        one.bias.zero_()[4:] = 1.0
    losses, dx, dw, _, _ = cut(one, 3, hidden, scale=1.0, chunk=4)
    wanted = plain(one, hidden, 1.0)
    assert_near((losses[0], dx, dw), (wanted.detach(), *torch.autograd.grad(wanted, (one.x, one.weight))), 1e-8)


def test_mistakes_are_named() -> None:
    one = head(4, torch.float32)
    with pytest.raises(ModelError, match=r"11 rows for vocabulary \[0, 5\)"):
        whole(one, vocab=Vocabulary(0, 5))
    with pytest.raises(ModelError, match="no suffix to take them"):
        whole(one, parameters=(one.bias,))
    with pytest.raises(ModelError, match="chunks of 0"):
        whole(one, chunk=0)
    with pytest.raises(ModelError, match="one dtype"):
        linear_cross_entropy(
            one.x.double(), one.weight, one.targets, None, scale=1.0, chunk=4, vocab=Vocabulary(0, ROWS)
        )
    with pytest.raises(ModelError, match="the sum one number"):
        chunked_loss(
            one.x, one.weight, one.targets, None, lambda z, t: (z.sum(1), 1), chunk=4, vocab=Vocabulary(0, ROWS)
        )
