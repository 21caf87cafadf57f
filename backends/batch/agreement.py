"""Before a step: every rank is seen to hold the same batch, and a rank that cannot use its own tells the others why."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch.distributed as dist

from fourfold.backends.batch.sequences import Document, Limits, digest, documents
from fourfold.backends.communication.aside import Aside
from fourfold.hardware.errors import FourfoldError, RunError, UsageError

REFUSED = -1
"""What a rank that cannot use its batch shows in place of a digest."""


def agreed(batch: Iterable[Any], limits: Limits, aside: Aside) -> tuple[Document, ...]:
    """The documents of the batch, the same on every rank.

    Raises, on every rank at once: the rank's own UsageError where its batch is bad; RunError naming the first rank
    whose batch is bad or unlike rank 0's.
    """
    docs, error = _read(batch, limits)
    compare(None if error else digest(docs), error, aside, contents="tokens, labels or weights")
    return docs


def compare(shown: tuple[int, int] | None, error: FourfoldError | None, aside: Aside, *, contents: str) -> None:
    """Lets every rank see the others' digest of lengths and one of contents, or that there is none for an error.

    Raises what `agreed` raises; `contents` says what differs where lengths are equal.
    """
    rows = aside.gathered(shown or (REFUSED, REFUSED))
    refused = [rank for rank, row in enumerate(rows) if row[0] == REFUSED]
    if refused:
        raise _refusal(refused[0], error)
    other = [rank for rank, row in enumerate(rows) if row != rows[0]]
    if other:
        what = "lengths" if any(rows[r][0] != rows[0][0] for r in other) else contents
        raise RunError(
            f"rank {other[0]} passed other {what} to step() than rank 0: every rank must pass the same global batch"
        )


def _read(batch: Iterable[Any], limits: Limits) -> tuple[tuple[Document, ...], FourfoldError | None]:
    """Whatever goes wrong here (the user's own iterator, too) is told to all: the other ranks are about to wait."""
    try:
        return documents(batch, limits), None
    except FourfoldError as error:
        return (), error
    except Exception as error:
        return (), UsageError(f"the batch cannot be read: {type(error).__name__}: {error}")


def _refusal(first: int, error: FourfoldError | None) -> FourfoldError:
    """This rank's own error, or what the first refusing rank said."""
    said: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(said, None if error is None else str(error))
    return error or RunError(f"rank {first} cannot use the batch it passed to step(): {said[first]}")
