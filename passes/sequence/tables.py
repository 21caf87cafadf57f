"""What a sequence method does for a document of any length, from its own code run at two lengths.

Bytes and rows grow with the length, pairs with its square, too: for lengths that a layout cuts evenly the tables are
exact, and for others they differ by the few tokens that some rank has more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from fourfold.ir.plan import Sharing
from fourfold.ir.record import Event, Ran, Recording, record
from fourfold.ir.sequence import METHODS
from fourfold.ir.sequence.method import Job
from fourfold.ir.sequence.rectangles import Softmax
from fourfold.ir.sequence.tokens import laid

CHUNKS = 16
"""Tokens of the smallest chunk of the document that a table is made from."""


@dataclass(frozen=True, slots=True)
class Heads:
    """One attention on one tensor rank."""

    heads: int
    kv_heads: int
    width: int
    dtype: str
    causal: bool
    window: int | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """The events of documents of `length` tokens and of twice as many, which are the same but for their sizes."""

    length: int
    once: Recording
    twice: Recording

    def at(self, length: int) -> Recording:
        """The events of a document of `length` tokens."""
        share = length / self.length
        found = (
            tuple(_between(one, two, share) for one, two in zip(self.once.of(kind), self.twice.of(kind), strict=True))
            for kind in ("forward", "backward")
        )
        return Recording(*found)


@lru_cache(maxsize=4096)
def recording(sharing: Sharing, n: int, heads: Heads, length: int, rank: int) -> Recording:
    """What a rank of a group of n does for one document: from a table, but where a window cuts what grows."""
    if heads.window is not None:
        return recorded(sharing, n, heads, length, rank)
    return table(sharing, n, heads, rank).at(length)


@lru_cache(maxsize=512)
def table(sharing: Sharing, n: int, heads: Heads, rank: int) -> Table:
    """The table of a method for a group of n and one attention."""
    length = 2 * n * CHUNKS
    return Table(length, *(recorded(sharing, n, heads, size, rank) for size in (length, 2 * length)))


@lru_cache(maxsize=512)
def recorded(sharing: Sharing, n: int, heads: Heads, length: int, rank: int) -> Recording:
    """What a rank of a group of n does for one document, as its method says."""
    shards = laid(sharing.layout, (length,), n, sharing.ulysses)
    travel = getattr(torch, sharing.travel)
    job = Job(shards, Softmax(1.0, heads.causal, heads.window), sharing.ulysses, travel)
    dtype = getattr(torch, heads.dtype)
    one = {"heads": heads.heads, "kv_heads": heads.kv_heads, "width": heads.width}
    return record(METHODS[sharing.method], job, rank, dtype=dtype, takes_delta=False, **one)


def _between(one: Event, two: Event, share: float) -> Event:
    """An event of a document `share` times as long as that of `one`; that of `two` is twice as long."""

    def grown(first: int, second: int) -> int:
        return max(0, round(first + (second - first) * (share - 1)))

    if isinstance(one, Ran):
        assert isinstance(two, Ran)
        square = (two.pairs - 2 * one.pairs) / 2
        pairs = max(0, round(square * share**2 + (one.pairs - square) * share))
        return replace(one, pairs=pairs, rows=grown(one.rows, two.rows), keys=grown(one.keys, two.keys))
    assert not isinstance(two, Ran)
    return replace(one, bytes=grown(one.bytes, two.bytes))
