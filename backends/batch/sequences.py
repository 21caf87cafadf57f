"""A global batch as sequences on the host: read in any usual form, checked against the model, labels shifted once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fourfold.hardware.errors import UsageError
from fourfold.ir.graph import Graph

IGNORED = -100
"""The label of a position without loss."""
FIELDS = ("tokens", "labels", "weights")
"""What a sequence may carry, in the order a tuple gives it."""


Rows = tuple[Tensor, Tensor, Tensor]
"""Tokens, labels and weights of one sequence, each at its own token."""


@dataclass(frozen=True, slots=True)
class Document:
    """One sequence on the host: tokens [n], the next token of each position [n] (-100: none), loss weights [n]."""

    tokens: Tensor
    targets: Tensor
    weights: Tensor

    def __len__(self) -> int:
        return int(self.tokens.shape[0])


@dataclass(frozen=True, slots=True)
class Limits:
    """What the model can read: rows of its token table, of its head, and of its table of positions (None: no limit)."""

    tokens: int | None = None
    labels: int | None = None
    positions: int | None = None


def limits_of(graph: Graph) -> Limits:
    """The limits of a captured model: its shortest tables."""
    rows: dict[str, list[int]] = {"tokens": [], "positions": [], "targets": []}
    for block in graph.blocks.values():
        for node in block.nodes:
            table, index = (*node.refs(), "", "")[:2] if node.op == "embedding" else ("", "")
            if index in rows:
                rows[index].append(block.value(table).shape[0])
            if node.op == "loss":
                rows["targets"].append(
                    block.value(node.refs()[1]).shape[1 if dict(node.kwargs).get("transposed") else 0]
                )
    return Limits(*(min(found, default=None) for found in (rows["tokens"], rows["targets"], rows["positions"])))


def documents(batch: Iterable[Any], limits: Limits | None = None) -> tuple[Document, ...]:
    """The batch's sequences with labels shifted by one, in document order.

    Each item is tokens [n], or a tuple (tokens, labels[, weights]), or a mapping with these keys; labels stand at the
    position of their own token (-100 = no loss), weights likewise. Raises UsageError naming the item.
    """
    if isinstance(batch, (Mapping, str)) or not isinstance(batch, Iterable):
        raise UsageError(f"a batch is a list of sequences, not a {type(batch).__name__}")
    found = tuple(_rows(i, item) for i, item in enumerate(batch))
    if not found:
        raise UsageError("the batch is empty: step() needs at least one sequence of at least one token")
    lengths = [len(tokens) for tokens, *_ in found]
    # All at once: a batch has hundreds of sequences, and the device waits for them.
    tokens, labels, weights = (torch.cat(rows) for rows in zip(*found, strict=True))
    _check_all(found, (tokens, labels, weights), limits or Limits())
    last = torch.tensor(lengths).cumsum(0) - 1
    targets, shifted = labels.roll(-1), weights.roll(-1)
    targets[last] = IGNORED
    parts = (x.split(lengths) for x in (tokens, targets, torch.where(targets == IGNORED, 0.0, shifted)))  # type: ignore[no-untyped-call]
    return tuple(Document(*row) for row in zip(*parts, strict=True))


def rows(index: int | str, item: Any, limits: Limits) -> Rows:
    """Tokens, labels and weights of sequence `index`, or of a stretch that `index` names, each at its own token.

    Raises UsageError naming it.
    """
    found = _rows(index, item)
    _check(index, *found, limits)
    return found


def _rows(index: int | str, item: Any) -> Rows:
    """As they are given, seen to be as long as each other."""
    given = _fields(index, item)
    tokens = _whole_numbers(index, "tokens", given["tokens"])
    if tokens.dim() != 1 or tokens.numel() == 0:
        shape = tuple(tokens.shape)
        raise UsageError(f"sequence {index} has shape {shape}: tokens must be one row of at least one token")
    labels = tokens if given["labels"] is None else _whole_numbers(index, "labels", given["labels"])
    weights = (
        torch.ones(len(tokens)) if given["weights"] is None else _tensor(index, "weights", given["weights"]).float()
    )
    for name, row in (("labels", labels), ("weights", weights)):
        if row.shape != tokens.shape:
            shape = tuple(row.shape)
            raise UsageError(
                f"sequence {index} has {len(tokens)} tokens and {name} of shape {shape}: one each is needed"
            )
    return tokens, labels, weights


def _fields(index: int | str, item: Any) -> dict[str, Any]:
    """Tokens, labels and weights as given; None where left out. A tuple of plain numbers is the tokens themselves."""
    if isinstance(item, Mapping):
        unknown = sorted(str(k) for k in item if k not in FIELDS)
        if unknown or "tokens" not in item:
            raise UsageError(
                f"sequence {index} has the keys {', '.join(map(str, item))}; it may have {', '.join(FIELDS)}"
            )
        return {name: item.get(name) for name in FIELDS}
    if isinstance(item, tuple) and not (item and isinstance(item[0], (int, float))):
        if not 1 <= len(item) <= len(FIELDS):
            raise UsageError(f"sequence {index} is a tuple of {len(item)}; it may be ({', '.join(FIELDS)})")
        return dict.fromkeys(FIELDS) | dict(zip(FIELDS, item, strict=False))
    return dict.fromkeys(FIELDS) | {"tokens": item}


def _tensor(index: int | str, name: str, values: Any) -> Tensor:
    try:
        return torch.as_tensor(values).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"the {name} of sequence {index} are no row of numbers: {error}") from None


def _whole_numbers(index: int | str, name: str, values: Any) -> Tensor:
    found = _tensor(index, name, values)
    if found.numel() and (found.is_floating_point() or found.is_complex() or found.dtype == torch.bool):
        raise UsageError(f"the {name} of sequence {index} are {found.dtype}: they must be whole numbers")
    return found.long()


def _check_all(found: Sequence[Rows], whole: Rows, limits: Limits) -> None:
    """Raises UsageError for the first sequence that is wrong; `whole` are all sequences as one."""
    try:
        _check("", *whole, replace(limits, positions=None))
    except UsageError:
        wrong = True
    else:
        wrong = limits.positions is not None and max(len(tokens) for tokens, *_ in found) > limits.positions
    if wrong:
        for index, one in enumerate(found):
            _check(index, *one, limits)


def _check(index: int | str, tokens: Tensor, labels: Tensor, weights: Tensor, limits: Limits) -> None:
    """Raises UsageError for what the model's tables do not hold: an index there would crash, or read another's row."""
    _within(index, "token", tokens, limits.tokens, tokens < 0, "the token table")
    wrong = (labels < 0) & (labels != IGNORED)
    _within(index, "label", labels, limits.labels, wrong, f"the head (and {IGNORED} is no label)")
    bad = ~torch.isfinite(weights) | (weights < 0)
    if bad.any():
        raise UsageError(f"weight {float(weights[bad][0])} in sequence {index}: weights are finite and not negative")
    if limits.positions is not None and len(tokens) > limits.positions:
        raise UsageError(
            f"sequence {index} has {len(tokens)} tokens and the model's table of positions {limits.positions}: cut it"
        )


def _within(index: int | str, name: str, row: Tensor, rows: int | None, wrong: Tensor, table: str) -> None:
    if rows is not None:
        wrong = wrong | (row >= rows)
    if wrong.any():
        at = int(wrong.nonzero()[0])
        size = "" if rows is None else f" has {rows} rows"
        raise UsageError(f"{name} {int(row[at])} at {at} of sequence {index}: {table}{size or ' holds none below 0'}")


def digest(docs: tuple[Document, ...]) -> tuple[int, int]:
    """A short number for the lengths and one for the contents, to compare between ranks."""
    contents = (row.numpy().tobytes() for doc in docs for row in (doc.tokens, doc.targets, doc.weights))
    return short([repr([len(d) for d in docs]).encode()]), short(contents)


def short(texts: Iterable[bytes]) -> int:
    """A number that tells these bytes from others, for one of 64 bits."""
    found = hashlib.sha256()
    for text in texts:
        found.update(text)
    return int(found.hexdigest()[:14], 16)
