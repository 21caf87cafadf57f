"""Packed self-attention over documents: one node for autograd, checkpoints and compilers, several kernels beneath it.

Under a compiler or a dispatch mode that node is an op: `fourfold::attention` returns (out, lse), and
`fourfold::attention_backward` takes them, so a recompute policy that saves FORWARD's outputs runs the kernel once.
`attend` is the function to call; KERNELS is the catalogue, in order of preference.
Letters: T packed tokens, H query heads, G key/value heads (query head h reads head h // (H / G)), D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from fourfold.backends.kernels.attention_aten import CPU_FLASH, FLASH
from fourfold.backends.kernels.attention_case import Case, Gradients, Kernel, Softmax, case_of
from fourfold.backends.kernels.attention_cudnn import CUDNN, MIXED
from fourfold.backends.kernels.attention_reference import REFERENCE, accumulation
from fourfold.backends.kernels.attention_triton import TRITON
from fourfold.backends.kernels.documents import Documents
from fourfold.hardware.errors import ModelError, RunError

KERNELS: tuple[Kernel, ...] = (CUDNN, MIXED, TRITON, FLASH, CPU_FLASH, REFERENCE)

Hooks = tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]
"""What is kept in place of a tensor, and the tensor again."""
AS_IS: Hooks = (lambda x: x, lambda x: x)


@dataclass(slots=True)
class Kept:
    """What the attentions of one block gave when it ran first, in order: a replay takes it and runs none again."""

    found: list[tuple[Any, ...]] = field(default_factory=list)
    runs: int = 0
    at: int = 0
    hooks: Hooks = AS_IS

    def start(self) -> None:
        """Called when the block starts to run: the first time results are kept, later handed out."""
        self.runs, self.at = self.runs + 1, 0

    def take(self) -> tuple[Tensor, ...] | None:
        """The next result of a replay, (out, lse) or what a shared attention keeps; None when the block runs first."""
        if self.runs < 2:
            return None
        self.at += 1
        return tuple(self.hooks[1](x) for x in self.found[self.at - 1])

    def keep(self, results: Iterable[Tensor]) -> None:
        """What `take` will give in its turn."""
        self.found.append(tuple(self.hooks[0](x) for x in results))


_DOCUMENTS = "Tensor offsets, int[] lengths, float scale, bool causal, int? window, str kernel"


def attend(
    q_THD: Tensor,
    k_TGD: Tensor,
    v_TGD: Tensor,
    documents: Documents,
    *,
    scale: float,
    causal: bool,
    window: int | None = None,
    kernel: str | None = None,
    kept: Kept | None = None,
) -> Tensor:
    """Attention of every token over its own document, [T, H, D], differentiable in q, k and v.

    window: each token sees keys j > i - window; kernel: a name of KERNELS, the first that claims and suits if None;
    kept: keeps the result, and gives it back when the block around it is replayed for its backward.
    Errors: ModelError if the heads do not divide or shapes disagree, RunError if the documents do not cover the tokens
    or the named kernel does not claim the call.
    """
    _check(q_THD, k_TGD, v_TGD, documents, window)
    softmax = Softmax(scale, causal, window)
    chosen = chosen_for(q_THD, k_TGD, documents, softmax, kernel)
    out: Tensor
    known = kept.take() if kept is not None else None
    if known is not None:
        out = _Again.apply(q_THD, k_TGD, v_TGD, *known, documents.offsets)  # type: ignore[no-untyped-call]
        return out
    if is_in_torch_dispatch_mode() or torch.compiler.is_compiling():
        lengths = list(documents.lengths)
        out, lse = FORWARD(q_THD, k_TGD, v_TGD, documents.offsets, lengths, scale, causal, window, chosen.name)
        told = [out.detach(), lse.detach()]
    else:
        told = []
        out = _Attended.apply(q_THD, k_TGD, v_TGD, documents, softmax, chosen, told)  # type: ignore[no-untyped-call]
    if kept is not None:
        kept.keep(told)
    return out


class _Attended(torch.autograd.Function):
    """What FORWARD and BACKWARD do, where nobody watches for these ops: they cost the host three times as much.

    Out and lse are put into `told`, for a replay.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        documents: Documents,
        softmax: Softmax,
        kernel: Kernel,
        told: list[Tensor],
    ) -> Tensor:
        out, lse = kernel.forward(q, k, v, documents, softmax)
        ctx.save_for_backward(q, k, v, out, lse, documents.offsets)
        ctx.how = documents, softmax, kernel
        told += [out.detach(), lse]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (*saved, _), (documents, softmax, kernel) = ctx.saved_tensors, ctx.how
        return (*_gradients(kernel, grads[0], tuple(saved), documents, softmax), *(None,) * 4)


class _Again(torch.autograd.Function):
    """Attention whose result is known: saves for backward what `_Attended` saves, in its order, and computes nothing.

    The graph of a replay is never walked back: what it saves goes to the nodes of the first run.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, offsets: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v, out, lse, offsets)
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise AssertionError("a replay of attention was differentiated")


def chosen_for(q_THD: Tensor, k_TGD: Tensor, documents: Documents, softmax: Softmax, name: str | None = None) -> Kernel:
    """`choose` for one call, asked once for all layers of these shapes."""
    asked = (q_THD.shape, k_TGD.shape, q_THD.dtype, softmax, torch.are_deterministic_algorithms_enabled(), name)
    return documents.once(asked, lambda: choose(case_of(q_THD, k_TGD, documents, softmax), name))


def choose(case: Case, name: str | None = None) -> Kernel:
    """The kernel of that name, else the first of KERNELS that claims the case and suits it."""
    if name is None:
        return next(kernel for kernel in KERNELS if kernel.claims(case) and kernel.suits(case))
    kernel = named(name)
    if not kernel.claims(case):
        able = ", ".join(kernel.name for kernel in KERNELS if kernel.claims(case))
        raise RunError(f"attention kernel {name} does not run {case}; these do: {able}")
    return kernel


def named(name: str) -> Kernel:
    """The kernel of KERNELS called `name`."""
    for kernel in KERNELS:
        if kernel.name == name:
            return kernel
    raise RunError(f"no attention kernel is called {name}; known: {', '.join(kernel.name for kernel in KERNELS)}")


def _check(q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, documents: Documents, window: int | None) -> None:
    tokens, heads, head_dim = q_THD.shape
    if k_TGD.shape != v_TGD.shape or k_TGD.shape[0] != tokens or k_TGD.shape[2] != head_dim:
        shapes = tuple(tuple(x.shape) for x in (q_THD, k_TGD, v_TGD))
        raise ModelError(f"attention of q, k, v shaped {shapes}: tokens and head sizes must agree, k like v")
    if heads % k_TGD.shape[1]:
        raise ModelError(f"attention of {heads} query heads over {k_TGD.shape[1]} key/value heads: not a multiple")
    if documents.tokens != tokens:
        raise RunError(f"documents of {documents.tokens} tokens describe tensors of {tokens}; the sum must agree")
    if window is not None and window < 1:
        raise ModelError(f"attention window {window}: a window counts the token itself, so it is 1 or more")


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    lengths: Sequence[int],
    scale: float,
    causal: bool,
    window: int | None,
    kernel: str,
) -> tuple[Tensor, Tensor]:
    documents = Documents(tuple(lengths), offsets, max(lengths, default=0))
    return named(kernel).forward(q, k, v, documents, Softmax(scale, causal, window))


def _forward_shapes(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    lse = q.new_empty((q.shape[1], q.shape[0]), dtype=accumulation(q.dtype))
    return q.new_empty(q.shape), lse


def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    offsets: Tensor,
    lengths: Sequence[int],
    scale: float,
    causal: bool,
    window: int | None,
    kernel: str,
) -> Gradients:
    documents = Documents(tuple(lengths), offsets, max(lengths, default=0))
    softmax = Softmax(scale, causal, window)
    return _gradients(named(kernel), grad, (q, k, v, out, lse), documents, softmax)


def _gradients(
    kernel: Kernel, grad: Tensor, saved: tuple[Tensor, ...], documents: Documents, softmax: Softmax
) -> Gradients:
    q, k, v, out, lse = saved
    # The gradient of a sum arrives as one number with strides of zero, which no kernel takes.
    dq, dk, dv = kernel.backward(grad.contiguous(), q, k, v, out, lse, documents, softmax)
    return dq.contiguous(), dk.contiguous(), dv.contiguous()


def _backward_shapes(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> Gradients:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, offsets, *ctx.rest = inputs
    ctx.save_for_backward(q, k, v, *output, offsets)
    # Merging partial attentions is written with its own backward, so nothing may flow back through the lse.
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 9
    q, k, v, out, lse, offsets = ctx.saved_tensors
    return (*BACKWARD(grad, q, k, v, out, lse, offsets, *ctx.rest), *(None,) * 6)


_forward_op = torch.library.custom_op(
    "fourfold::attention",
    _forward,
    mutates_args=(),
    schema=f"(Tensor q, Tensor k, Tensor v, {_DOCUMENTS}) -> (Tensor, Tensor)",
)
_backward_op = torch.library.custom_op(
    "fourfold::attention_backward",
    _backward,
    mutates_args=(),
    schema=(
        f"(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, {_DOCUMENTS}) -> (Tensor, Tensor, Tensor)"
    ),
)
_forward_op.register_fake(_forward_shapes)
_backward_op.register_fake(_backward_shapes)
_forward_op.register_autograd(_differentiate, setup_context=_save)

# By name, for recompute policies (save the outputs of FORWARD) and for methods that merge partial attentions.
FORWARD = torch.ops.fourfold.attention.default
BACKWARD = torch.ops.fourfold.attention_backward.default
