"""Weight gradients of linear layers that come later than the gradients of their inputs: a backward in two halves.

A linear layer is given two taps, tensors of no storage shaped like its input x and its result y. Its backward makes dx
as ever, and hands x and dy out as the gradients of the taps; dW = dy^T x is left to whoever caught them. So a region
stays one pure function with one backward, compiled or not, replayed or not, and nothing is traversed twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fourfold.ir.rule import State

Shape = tuple[int, ...]
Pair = tuple[str, Tensor, Tensor]
"""A weight's name in its block, what the layer took, and the gradient of what it gave: dW = gradient^T taken."""


@dataclass(frozen=True, slots=True)
class Tap:
    """A linear layer of a region whose weight may wait: its parameter, the shapes and states of input and result."""

    parameter: str
    takes: tuple[Shape, State]
    gives: tuple[Shape, State]


@dataclass(slots=True)
class Late:
    """What the weights of one stage still wait for in one micro-step: pairs by the number of their call.

    tokens: of this rank's micro-step, padding included; size: of the tensor axis; anchor: a number that makes autograd
    come by.
    """

    tokens: int
    size: int
    anchor: Tensor
    pairs: dict[int, list[Pair]] = field(default_factory=dict)

    @classmethod
    def of(cls, tokens: int, size: int, *, dtype: torch.dtype, device: torch.device) -> Late:
        """Nothing waits yet."""
        return cls(tokens, size, torch.zeros((), dtype=dtype, device=device, requires_grad=True))

    def taps(self, call: int, taps: tuple[Tap, ...]) -> tuple[Tensor, ...]:
        """Two for each layer, which bring its pair here in backward."""
        if not taps:
            return ()
        shapes = [self._sized(*there) for tap in taps for there in (tap.takes, tap.gives)]
        names = tuple(tap.parameter for tap in taps)

        def caught(grads: tuple[Tensor | None, ...]) -> None:
            for name, x, dy in zip(names, grads[::2], grads[1::2], strict=True):
                if x is not None and dy is not None:
                    self.pairs.setdefault(call, []).append((name, x, dy))

        found: tuple[Tensor, ...] = _Taps.apply(self.anchor, caught, shapes)  # type: ignore[no-untyped-call]
        return found

    def products(self, call: int, anchor: Tensor, weights: Callable[[str], Tensor]) -> Tensor:
        """A number, read off `anchor`, whose backward gives each weight of a call its gradient and drops the pairs."""
        pairs = self.pairs.pop(call, [])
        found: Tensor = _Products.apply(anchor, pairs, *(weights(name) for name, _, _ in pairs))  # type: ignore[no-untyped-call]
        return found

    def _sized(self, shape: Shape, state: State) -> Shape:
        return sized(shape, state, self.size, tokens=self.tokens)


def sized(shape: Shape, state: State, size: int, *, tokens: int) -> Shape:
    """`shape` as one of `size` ranks holds it in a micro-step of `tokens`."""
    whole = tuple(tokens * -d if d < 0 else d for d in shape)
    n = size if state.kind == "S" else 1
    return tuple(d // n if i == state.dim else d for i, d in enumerate(whole))


def linear(x: Tensor, weight: Tensor, tap_x: Tensor | None = None, tap_y: Tensor | None = None) -> Tensor:
    """x W^T; given taps, the weight's gradient is left to them."""
    if tap_x is None or tap_y is None:
        return F.linear(x, weight)
    found: Tensor = _Linear.apply(x, weight, tap_x, tap_y)  # type: ignore[no-untyped-call]
    return found


class _Linear(torch.autograd.Function):
    """Backward makes dx; x and dy leave as the gradients of the taps, which hold no values."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, tap_x: Tensor, tap_y: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return grads[0] @ weight if ctx.needs_input_grad[0] else None, None, x, grads[0]


class _Taps(torch.autograd.Function):
    """Tensors of one element's storage; backward passes their gradients to `caught`."""

    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, caught: Callable[[tuple[Tensor | None, ...]], None], shapes: list[Shape]
    ) -> tuple[Tensor, ...]:
        ctx.caught = caught
        ctx.set_materialize_grads(False)
        return tuple(anchor.new_empty(()).expand(shape) for shape in shapes)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[None, None, None]:
        ctx.caught(grads)
        return None, None, None


class _Products(torch.autograd.Function):
    """Backward multiplies: each weight's gradient from its pair."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, pairs: list[Pair], *weights: Tensor) -> Tensor:
        ctx.pairs = pairs
        return anchor.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        found = tuple(dy.flatten(0, -2).t() @ x.flatten(0, -2) for _, x, dy in ctx.pairs)
        ctx.pairs = []
        return (grads[0], None, *found)
