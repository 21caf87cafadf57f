"""The loss head: linear + cross-entropy fused over chunks of tokens, with the vocabulary cut over ranks or whole.

Cross-entropy of a token with logits z and target t is logsumexp(z) - z_t, its gradient softmax(z) - onehot(t). With the
vocabulary cut, a rank knows the largest and the summed exponentials of its own rows: two small all-reduces a chunk, a
maximum and a sum of two numbers a token, make the log-sum-exp and the target's logit known to all
(Shoeybi et al. 2019, section 3). Letters: T tokens, C tokens of a chunk, D features, V rows of this rank's weight.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, ParamSpec, TypeVar

import torch
from torch import Tensor

from fourfold.backends.kernels.linear_chunks import Piece, chunked
from fourfold.hardware.errors import ModelError

IGNORED = -100

P = ParamSpec("P")
R = TypeVar("R")

Reduce = Callable[[Tensor, Literal["max", "sum"]], None]
Suffix = Callable[..., Tensor]


def every(scores_CV: Tensor) -> Tensor:
    """All columns, of a rank that holds the whole vocabulary."""
    return scores_CV


def alone(tensor: Tensor, how: Literal["max", "sum"]) -> None:
    """The reduction of a rank that holds the whole vocabulary: nothing to do."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The rows [start, stop) of the full vocabulary that this rank's weight holds.

    reduce: combines a tensor, in place, over the ranks that hold the other rows, by maximum or sum. gather: the scores
    of all rows, from those of this rank's, [C, V] each.
    """

    start: int
    stop: int
    reduce: Reduce = alone
    gather: Callable[[Tensor], Tensor] = every


def linear_cross_entropy(
    x_TD: Tensor,
    weight_VD: Tensor,
    targets_T: Tensor,
    weights_T: Tensor | None,
    *,
    scale: float,
    chunk: int,
    vocab: Vocabulary,
    suffix: Suffix | None = None,
    parameters: tuple[Tensor, ...] = (),
) -> Tensor:
    """Sum over tokens of weight * cross-entropy * scale, a float32 scalar (float64 for float64), the same on all ranks.

    targets_T: int64 in the full vocabulary, -100 for none; weights_T: float32 a token, None for ones; a token of
    weight 0 contributes nothing, forward or backward. suffix: what the model does to its logits, element by element
    along the vocabulary: `suffix(logits_CV, *parameters)` of the same shape; its parameters (a bias of this rank's
    rows) get gradients. The gradient of x is this rank's partial sum: the caller adds it over the ranks that cut the
    vocabulary; so is that of a parameter which all of them hold. Errors: ModelError if the weight does not hold the
    rows `vocab` names, or if there are parameters and no suffix.
    """
    if weight_VD.shape[0] != vocab.stop - vocab.start or vocab.stop <= vocab.start:
        raise ModelError(f"loss head of {weight_VD.shape[0]} rows for vocabulary [{vocab.start}, {vocab.stop})")
    if parameters and suffix is None:
        raise ModelError(f"loss head with {len(parameters)} suffix parameters and no suffix to take them")
    objective = CrossEntropy(targets_T, _coefficients(targets_T, weights_T, x_TD.dtype, scale), vocab, suffix)
    return chunked(x_TD, weight_VD, objective, chunk=chunk, parameters=parameters)[0]


@dataclass(frozen=True, slots=True, eq=False)
class CrossEntropy:
    """The objective of `linear_cross_entropy`: coefficients_T is weight * scale, 0 for tokens that do not count."""

    targets_T: Tensor
    coefficients_T: Tensor
    vocab: Vocabulary
    suffix: Suffix | None

    def __call__(self, logits_CV: Tensor, rows: slice, parameters: Sequence[Tensor], *, differentiate: bool) -> Piece:
        """The weighted loss of the chunk and, in place of the logits, its gradient."""
        if self.suffix is None:
            total, lse_C, index_C = self._loss(logits_CV, rows)
            if not differentiate:
                return Piece(total, torch.zeros_like(total))
            _fused(gradient, logits_CV)(logits_CV, index_C, lse_C, self.coefficients_T[rows])
            return Piece(total, torch.zeros_like(total), (logits_CV,))
        leaf_CV = logits_CV.detach().requires_grad_(differentiate)
        with torch.set_grad_enabled(differentiate):
            scores_CV = self.suffix(leaf_CV, *parameters)
        # The suffix may have kept its result for its own backward, so it is not overwritten.
        found_CV = scores_CV.detach().clone()
        total, lse_C, index_C = self._loss(found_CV, rows)
        if not differentiate:
            return Piece(total, torch.zeros_like(total))
        _fused(gradient, found_CV)(found_CV, index_C, lse_C, self.coefficients_T[rows])
        return Piece(total, torch.zeros_like(total), replay(scores_CV, (leaf_CV, *parameters), found_CV))

    def _loss(self, scores_CV: Tensor, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """The weighted loss of the chunk, each token's log-sum-exp, its target's column here (-1: on another rank)."""
        targets_C, coefficients_C = self.targets_T[rows], self.coefficients_T[rows]
        here = (targets_C >= self.vocab.start) & (targets_C < self.vocab.stop)
        index_C = torch.where(here, targets_C - self.vocab.start, -1)
        top_C, sum_C, target_C = _fused(statistics, scores_CV)(scores_CV, index_C)
        highest_C = top_C.clone()
        self.vocab.reduce(highest_C, "max")
        base_C = _finite(highest_C)
        pair_2C = torch.stack((sum_C * (top_C - base_C).exp(), target_C))
        self.vocab.reduce(pair_2C, "sum")
        lse_C = base_C + pair_2C[0].log()
        counted = coefficients_C != 0
        total = torch.where(counted, (lse_C - pair_2C[1]) * coefficients_C, 0.0).sum()
        return total, lse_C, index_C


def statistics(scores_CV: Tensor, index_C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each row's maximum, its sum of exp(score - maximum) and the score at `index_C` (0 where it is negative)."""
    top_C = scores_CV.amax(-1).to(_wide(scores_CV))
    sum_C = (scores_CV.to(top_C.dtype) - _finite(top_C).unsqueeze(1)).exp().sum(-1)
    target_C = scores_CV.gather(1, index_C.clamp_min(0).unsqueeze(1)).squeeze(1).to(top_C.dtype)
    return top_C, sum_C, torch.where(index_C < 0, 0.0, target_C)


def gradient(scores_CV: Tensor, index_C: Tensor, lse_C: Tensor, coefficients_C: Tensor) -> None:
    """Overwrite the scores by (exp(score - lse) - [column == index]) * coefficient, worked out in float32 at least."""
    wide_CV = scores_CV.to(_wide(scores_CV))
    wide_CV.sub_(lse_C.unsqueeze(1)).exp_()
    hit_CV = torch.arange(scores_CV.shape[1], device=scores_CV.device) == index_C.unsqueeze(1)
    wide_CV.add_(hit_CV, alpha=-1).mul_(coefficients_C.unsqueeze(1))
    # A token that does not count has no gradient even where its logits overflow and give no number.
    wide_CV.masked_fill_((coefficients_C == 0).unsqueeze(1), 0.0)
    if wide_CV.dtype != scores_CV.dtype:
        scores_CV.copy_(wide_CV)


def _coefficients(targets_T: Tensor, weights_T: Tensor | None, dtype: torch.dtype, scale: float) -> Tensor:
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    ones = torch.ones(targets_T.shape, dtype=wide, device=targets_T.device)
    weights = ones if weights_T is None else weights_T.to(wide)
    return torch.where(targets_T == IGNORED, 0.0, weights * scale)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _finite(top_C: Tensor) -> Tensor:
    """The maximum to subtract: 0 where every score is hidden, as -inf minus -inf is no number."""
    return torch.where(top_C == float("-inf"), 0.0, top_C)


def replay(output: Tensor, inputs: Sequence[Tensor], grad: Tensor | None) -> tuple[Tensor | None, ...]:
    """The gradients of the inputs that want one; None for the others and for those the output does not depend on."""
    wanting = [tensor for tensor in inputs if tensor.requires_grad]
    if not output.requires_grad:
        return (None,) * len(inputs)
    found = iter(torch.autograd.grad(output, wanting, grad, allow_unused=True))
    return tuple(next(found) if tensor.requires_grad else None for tensor in inputs)


def _fused(function: Callable[P, R], scores_CV: Tensor) -> Callable[P, R]:
    """The function, compiled into one or two kernels where the scores are on a GPU."""
    return _compiled(function) if scores_CV.is_cuda else function


@functools.cache
def _compiled(function: Callable[P, R]) -> Callable[P, R]:
    return torch.compile(function)
