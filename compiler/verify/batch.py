"""A ragged batch that meets every edge: many lengths, one token alone, documents and a whole rank without targets."""

from __future__ import annotations

import torch
from torch import Tensor

from fourfold.backends.batch.batching import dealt

LENGTHS = (37, 9, 24, 16, 31, 12)
"""Lengths of the documents of each bin in turn: odd, even, shorter and longer than the padding."""


def ragged(*, vocabulary: int, pool: int, micro_steps: int, longest: int | None) -> tuple[list[dict[str, Tensor]], int]:
    """The batch (tokens, labels, weights), and the capacity under which `pool` ranks run it in `micro_steps` or more.

    The last rank of a pool of two or more has no supervised token; one document elsewhere has none either; one has a
    single token; every third carries weights other than one, every fourth hides some labels.
    """
    lengths = _lengths(pool * micro_steps, longest)
    capacity = _capacity(lengths, pool, micro_steps)
    hidden = (
        {i for step in dealt(lengths, ranks=pool, capacity=capacity)[-1] for i in step.documents} if pool > 1 else set()
    )
    hidden |= {next(i for i, n in enumerate(lengths) if n > 1 and i not in hidden)}
    generator = torch.Generator().manual_seed(7)
    return [_document(i, n, vocabulary, i in hidden, generator) for i, n in enumerate(lengths)], capacity


def unplaced(*, vocabulary: int, pool: int, longest: int | None) -> list[dict[str, Tensor]]:
    """The batch where a policy is to say what `pool` ranks run of it, the same for all policies.

    Every fifth document, a long one among them, has no supervised token; the longest, which are shared or cut, have.
    """
    generator = torch.Generator().manual_seed(7)
    lengths = _lengths(pool, longest)
    return [_document(i, n, vocabulary, i % 5 == 4, generator) for i, n in enumerate(lengths)]


def _lengths(bins: int, longest: int | None) -> list[int]:
    most = min(max(LENGTHS), longest or max(LENGTHS))
    wanted = [LENGTHS[i % len(LENGTHS)] + i // len(LENGTHS) for i in range(2 * bins + 2)]
    return [*(max(2, min(n, most)) for n in wanted), 1]


def _capacity(lengths: list[int], pool: int, micro_steps: int) -> int:
    """The most tokens a micro-step may hold so that `micro_steps` are needed, nearly filled."""
    if micro_steps == 1:
        return sum(lengths)
    found = max(*lengths, -(-sum(lengths) // (pool * micro_steps)))
    while len(dealt(lengths, ranks=pool, capacity=found)[0]) > micro_steps:
        found += 1
    return found


def _document(index: int, length: int, vocabulary: int, hidden: bool, generator: torch.Generator) -> dict[str, Tensor]:
    tokens = torch.randint(0, vocabulary, (length,), generator=generator)
    labels, weights = tokens.clone(), torch.ones(length)
    if index % 3 == 1:
        weights = 0.25 + torch.rand(length, generator=generator)
    if index % 4 == 2:
        labels[: length // 2] = -100
    if hidden:
        labels[:] = -100
    return {"tokens": tokens, "labels": labels, "weights": weights}
