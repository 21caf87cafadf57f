"""A user's own loss over chunks of logits: `loss(logits_CV, targets_C) -> (sum, count)`, replayed chunk by chunk.

Letters: T tokens, C tokens of a chunk, D features, V rows of this rank's weight, or of the whole one where gathered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fourfold.backends.kernels.linear_chunks import Piece, chunked
from fourfold.backends.kernels.linear_loss import IGNORED, Suffix, Vocabulary, replay
from fourfold.hardware.errors import ModelError

Loss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | int]]


def chunked_loss(
    x_TD: Tensor,
    weight_VD: Tensor,
    targets_T: Tensor,
    weights_T: Tensor | None,
    loss: Loss,
    *,
    chunk: int,
    vocab: Vocabulary,
    scale: float = 1.0,
    suffix: Suffix | None = None,
    parameters: tuple[Tensor, ...] = (),
) -> tuple[Tensor, Tensor]:
    """The sums of (scale * loss, count) that `loss(logits_CV, targets_C)` gives for each chunk of tokens.

    The loss sees the whole vocabulary, gathered chunk by chunk where ranks cut it. A token of weight 0 is shown to it
    as target -100; other weights do not reach it. Each chunk is differentiated by replaying suffix and loss, so both
    must depend on the logits of one token at a time, or on this chunk alone; what they close over gets no gradient.
    Errors: ModelError if the loss gives anything but one number for the sum.
    """
    shown = targets_T if weights_T is None else targets_T.masked_fill(weights_T == 0, IGNORED)
    objective = Replayed(shown, loss, scale, vocab, suffix)
    return chunked(x_TD, weight_VD, objective, chunk=chunk, parameters=parameters)


@torch.no_grad()
def counted(
    targets_T: Tensor, weights_T: Tensor, loss: Loss, *, chunk: int, vocabulary: int, dtype: torch.dtype
) -> Tensor:
    """What a user's loss counts over all tokens, a scalar: asked with logits of zero, as targets alone decide it."""
    shown = targets_T.masked_fill(weights_T == 0, IGNORED)
    zeros_CV = torch.zeros((chunk, vocabulary), dtype=dtype, device=targets_T.device)
    total = torch.zeros((), dtype=torch.float64, device=targets_T.device)
    for targets_C in torch.split(shown, chunk):
        total += _asked(loss, zeros_CV[: len(targets_C)], targets_C)[1]
    return total


@dataclass(frozen=True, slots=True, eq=False)
class Replayed:
    """The objective of `chunked_loss`."""

    targets_T: Tensor
    loss: Loss
    scale: float
    vocab: Vocabulary
    suffix: Suffix | None

    def __call__(self, logits_CV: Tensor, rows: slice, parameters: Sequence[Tensor], *, differentiate: bool) -> Piece:
        """The user's loss of the chunk, its gradient by autograd: this rank's columns of that of all scores."""
        leaf_CV = logits_CV.detach().requires_grad_(differentiate)
        with torch.set_grad_enabled(differentiate):
            scores_CV = leaf_CV if self.suffix is None else self.suffix(leaf_CV, *parameters)
            seen_CV = self.vocab.gather(scores_CV.detach()).requires_grad_(differentiate)
            total, counted = _asked(self.loss, seen_CV, self.targets_T[rows])
            total = total * self.scale
        if not differentiate:
            return Piece(total, counted)
        (grad_CV,) = replay(total, (seen_CV,), None)
        if grad_CV is None:
            return Piece(total.detach(), counted, (None,) * (1 + len(parameters)))
        own_CV = grad_CV[:, self.vocab.start : self.vocab.stop]
        return Piece(total.detach(), counted, replay(scores_CV, (leaf_CV, *parameters), own_CV))


def _asked(loss: Loss, scores_CV: Tensor, targets_C: Tensor) -> tuple[Tensor, Tensor]:
    """What a user's loss says of a chunk, as two scalars. Raises ModelError for anything else."""
    found = loss(scores_CV, targets_C)
    if not isinstance(found, tuple) or len(found) != 2:
        raise ModelError(f"a loss must give (sum, count) of a chunk; it gave {found}")
    total, count = found
    if not isinstance(total, Tensor) or total.numel() != 1:
        raise ModelError(f"a loss must give (sum, count) of a chunk, the sum one number; it gave {total}")
    return total.reshape(()), torch.as_tensor(count, device=total.device).detach()
