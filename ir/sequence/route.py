"""The round that queries make past all ranks: which of their rows each rank needs, and which go on and come back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

from fourfold.ir.sequence.rectangles import Softmax, rectangles
from fourfold.ir.sequence.tokens import Shard, shard

Spans = tuple[tuple[int, int], ...]
"""Stretches (first, past) of rows, in order, with gaps between them."""


@dataclass(frozen=True, slots=True)
class Stop:
    """One step of the round at one rank.

    The rank holds `rows` rows of the queries of `owner`. Those at `seen`, which are the tokens of `queries`, see its
    keys; those at `onward` go on to the next rank. Meanwhile `guest` works on this rank's own queries, on rows `home`.
    """

    owner: int
    rows: int
    seen: Spans
    queries: Shard
    onward: Spans
    guest: int
    home: Spans


@lru_cache(maxsize=256)
def route(shards: tuple[Shard, ...], softmax: Softmax, rank: int) -> tuple[Stop, ...]:
    """The stops at one rank: at step t it holds queries of rank + t, with the rows that it or a later rank sees."""
    n = len(shards)
    found = []
    for step in range(n):
        owner, guest = (rank + step) % n, (rank - step) % n
        held = _wanted(shards, softmax, owner, step)
        seen = _seen(shards, softmax, owner, step)
        onward = _wanted(shards, softmax, owner, step + 1)
        queries = _cut(shards[owner], seen)
        home = _seen(shards, softmax, rank, step)
        found.append(Stop(owner, counted(held), _inside(held, seen), queries, _inside(held, onward), guest, home))
    return tuple(found)


def counted(spans: Spans) -> int:
    """How many rows."""
    return sum(past - first for first, past in spans)


def _seen(shards: tuple[Shard, ...], softmax: Softmax, owner: int, step: int) -> Spans:
    """Rows of `owner` that see a key of the rank they are at; at home all, as there begin the sums."""
    if step == 0:
        return _merged([(0, shards[owner].tokens)])
    keys = shards[(owner - step) % len(shards)]
    return _merged(one.rows for one in rectangles(shards[owner], keys, softmax))


def _wanted(shards: tuple[Shard, ...], softmax: Softmax, owner: int, step: int) -> Spans:
    """Rows of `owner` that a rank sees at this step or later."""
    return _merged(span for later in range(step, len(shards)) for span in _seen(shards, softmax, owner, later))


def _merged(spans: Iterable[tuple[int, int]]) -> Spans:
    found: list[tuple[int, int]] = []
    for first, past in sorted(spans):
        if first >= past:
            continue
        if found and first <= found[-1][1]:
            found[-1] = (found[-1][0], max(past, found[-1][1]))
        else:
            found.append((first, past))
    return tuple(found)


def _inside(held: Spans, wanted: Spans) -> Spans:
    """Where `wanted` lies among the rows of `held`, which has them all, stored one behind the other."""
    ats = list(accumulate((past - first for first, past in held), initial=0))
    found, i = [], 0
    for first, past in wanted:
        while held[i][1] <= first:
            i += 1
        found.append((ats[i] + first - held[i][0], ats[i] + past - held[i][0]))
    return _merged(found)


def _cut(whole: Shard, spans: Spans) -> Shard:
    """The tokens of these rows."""
    pieces, i = [], 0
    for run in whole.runs:
        while i < len(spans) and spans[i][1] <= run.at:
            i += 1
        j = i
        while j < len(spans) and spans[j][0] < run.at + run.count:
            low, high = max(spans[j][0], run.at), min(spans[j][1], run.at + run.count)
            pieces.append((run.document, run.start + (low - run.at) * run.step, high - low, run.step))
            j += 1
    return shard(pieces)
