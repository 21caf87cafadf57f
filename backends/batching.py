"""From a global batch to micro-steps: labels shifted once, sequences packed and dealt to the ranks of the pool."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fourfold.hardware.errors import UsageError

IGNORED = -100
"""The label of a position without loss."""


@dataclass(frozen=True, slots=True)
class Document:
    """One sequence on the host: tokens [n], the next token of each position [n] (-100: none), loss weights [n]."""

    tokens: Tensor
    targets: Tensor
    weights: Tensor

    def __len__(self) -> int:
        return int(self.tokens.shape[0])


@dataclass(frozen=True, slots=True)
class MicroStep:
    """Which documents of the batch one rank runs at once."""

    documents: tuple[int, ...]
    tokens: int


def documents(batch: Sequence[Any]) -> tuple[Document, ...]:
    """The batch's sequences with labels shifted by one, in document order.

    Each item is tokens [n], or (tokens, labels[, weights]), or a mapping with these keys; labels stand at the position
    of their own token (-100 = no loss), weights likewise. Raises UsageError naming the item.
    """
    if len(batch) == 0:
        raise UsageError("the batch is empty: step() needs at least one sequence of at least one token")
    return tuple(_document(i, item) for i, item in enumerate(batch))


def _document(index: int, item: Any) -> Document:
    tokens, labels, weights = _fields(item)
    tokens = torch.as_tensor(tokens, dtype=torch.long).cpu()
    if tokens.dim() != 1 or tokens.numel() == 0:
        raise UsageError(f"sequence {index} has shape {tuple(tokens.shape)}: tokens must be one row of at least one token")
    labels = tokens if labels is None else torch.as_tensor(labels, dtype=torch.long).cpu()
    weights = torch.ones(len(tokens)) if weights is None else torch.as_tensor(weights, dtype=torch.float32).cpu()
    if labels.shape != tokens.shape or weights.shape != tokens.shape:
        raise UsageError(f"sequence {index} has {len(tokens)} tokens, {labels.numel()} labels and {weights.numel()} weights: all must agree")
    end = torch.tensor([IGNORED])
    targets = torch.cat((labels[1:], end))
    shifted = torch.cat((weights[1:], torch.zeros(1)))
    return Document(tokens, targets, torch.where(targets == IGNORED, 0.0, shifted))


def _fields(item: Any) -> tuple[Any, Any, Any]:
    if isinstance(item, Mapping):
        return item["tokens"], item.get("labels"), item.get("weights")
    if isinstance(item, tuple):
        return item[0], *(*item[1:], None, None)[:2]
    return item, None, None


def digest(docs: tuple[Document, ...]) -> tuple[int, int]:
    """A short number for the lengths and one for the contents, to compare between ranks."""
    lengths = hashlib.sha256(repr([len(d) for d in docs]).encode())
    content = hashlib.sha256()
    for doc in docs:
        content.update(doc.tokens.numpy().tobytes() + doc.targets.numpy().tobytes() + doc.weights.numpy().tobytes())
    return int(lengths.hexdigest()[:14], 16), int(content.hexdigest()[:14], 16)


def dealt(lengths: Sequence[int], *, ranks: int, capacity: int) -> tuple[tuple[MicroStep, ...], ...]:
    """For each rank of the pool, its micro-steps: as few as hold all, equal in number, tokens balanced.

    Longest first to the emptiest bin (LPT); where that overfills a bin, best fit; where that fails, one more
    micro-step. Raises UsageError for a sequence longer than `capacity`.
    """
    for i, length in enumerate(lengths):
        if length > capacity:
            raise UsageError(
                f"sequence {i} has {length} tokens, and a micro-step holds {capacity}: plan for a workload that contains "
                f"sequences of this length, or cut them"
            )
    steps = max(1, -(-sum(lengths) // (capacity * ranks)))
    while True:
        bins = _balanced(lengths, steps * ranks, capacity) or _best_fit(lengths, steps * ranks, capacity)
        if bins is not None:
            return tuple(tuple(bins[rank + ranks * step] for step in range(steps)) for rank in range(ranks))
        steps += 1


def _balanced(lengths: Sequence[int], count: int, capacity: int) -> list[MicroStep] | None:
    loads, held = [0] * count, [[] for _ in range(count)]  # type: ignore[var-annotated]
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        at = min(range(count), key=lambda b: (loads[b], b))
        if loads[at] + lengths[i] > capacity:
            return None
        loads[at] += lengths[i]
        held[at].append(i)
    return [MicroStep(tuple(h), n) for h, n in zip(held, loads, strict=True)]


def _best_fit(lengths: Sequence[int], count: int, capacity: int) -> list[MicroStep] | None:
    loads, held = [0] * count, [[] for _ in range(count)]  # type: ignore[var-annotated]
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        room = [b for b in range(count) if loads[b] + lengths[i] <= capacity]
        if not room:
            return None
        at = max(room, key=lambda b: (loads[b], -b))
        loads[at] += lengths[i]
        held[at].append(i)
    return [MicroStep(tuple(h), n) for h, n in zip(held, loads, strict=True)]


@dataclass(frozen=True, slots=True)
class Packed:
    """One micro-step's tensors on the device, padded to `tokens`: ids [1, T], positions, targets, weights [T]."""

    tokens: Tensor
    positions: Tensor
    targets: Tensor
    weights: Tensor
    lengths: tuple[int, ...]


def pack(docs: Sequence[Document], *, bucket: int, device: torch.device) -> Packed:
    """The documents on one token axis, padded with documents of their own that have no target."""
    lengths = [len(d) for d in docs]
    total = sum(lengths)
    size = max(bucket, -(-total // bucket) * bucket)
    tokens, positions = torch.zeros(size, dtype=torch.long), torch.zeros(size, dtype=torch.long)
    targets, weights = torch.full((size,), IGNORED), torch.zeros(size)
    start = 0
    for doc in docs:
        span = slice(start, start + len(doc))
        tokens[span], targets[span], weights[span] = doc.tokens, doc.targets, doc.weights
        positions[span] = torch.arange(len(doc))
        start += len(doc)
    padding = [min(bucket, size - at) for at in range(total, size, bucket)]
    moved = (x.to(device, non_blocking=True) for x in (tokens[None], positions, targets, weights))
    return Packed(*moved, tuple(lengths + padding))
