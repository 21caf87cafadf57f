"""Attention over parts keeps for its backward what they need, once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fourfold.backends.attention.attention import Attention, Work, attend_parts
from fourfold.backends.attention.sequence import Group
from fourfold.ir.local import Local
from fourfold.ir.sequence import METHODS
from fourfold.ir.sequence.rectangles import Softmax
from fourfold.ir.sequence.tokens import laid

LENGTHS = (5, 9)
PADDING = 2


@pytest.mark.parametrize("method", ["ring", "gather_kv", "ulysses", "usp", "token_ring"])
def test_a_method_that_saves_its_own_tensors_needs_no_operands(method: str) -> None:
    q, k, v, grad = (torch.randn((sum(LENGTHS) + PADDING, heads, 4)) for heads in (4, 2, 2, 4))
    wanted, _ = gradients("ring", (q, k, v), grad)
    found, out = gradients(method, (q, k, v), grad)
    torch.testing.assert_close(found, wanted)
    assert out.grad_fn is not None
    rows = [len(x) for x in out.grad_fn.saved_tensors[:4]]  # type: ignore[attr-defined]
    assert rows == ([len(q) - PADDING] * 3 + [len(q)] if METHODS[method].plain else [0] * 4)


def gradients(method: str, operands: tuple[Tensor, ...], grad: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """Of the operands, and the result, where one rank is a group of its own."""
    group = Group(Local(0, (0,), {}), laid("contiguous", LENGTHS, 1), METHODS[method])
    work = Work(Attention((group,), sum(LENGTHS)), Softmax(0.5, causal=True), (0, "attention"))
    q, k, v = (x.clone().requires_grad_() for x in operands)
    out = attend_parts(q, k, v, work)
    return torch.autograd.grad(out, (q, k, v), grad, retain_graph=True), out
