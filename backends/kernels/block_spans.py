"""What each stored query sees of stored keys as one span of keys a row, and the tiles a kernel visits for it.

Documents store their tokens by position, so that causal masks, windows and documents all leave a row one span of keys;
where storage scatters a document, its rows need further layers of spans. Letters: M rows of queries, J jobs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from fourfold.backends.communication.aside import moved
from fourfold.ir.sequence.rectangles import Rectangle

JOB = 5
"""Numbers of a job: first row (or key) of its tile; the first key (or row) it visits; steps of a mask, of none, all."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Rows and keys of one tile of a kernel."""

    rows: int
    keys: int


@dataclass(frozen=True, slots=True)
class Layer:
    """One span of keys for each row, on the device.

    spans_2M: int32, first key and the one past the last, equal where the row sees none. Jobs int32 [J, 5], longest
    first: `forward` and `query` of tiles of rows that step through keys, `key` of tiles of keys that step through rows.
    """

    spans_2M: Tensor
    forward: Tensor
    query: Tensor
    key: Tensor


@lru_cache(maxsize=128)
def layers(
    seen: tuple[Rectangle, ...], counts: tuple[int, int], sizes: tuple[Sizes, Sizes, Sizes], device: torch.device
) -> tuple[Layer, ...]:
    """The spans of all rectangles of (rows, keys), and the jobs of the three kernels' sizes, for each layer."""
    forward, query, key = sizes
    found = []
    for spans in stacked(seen, counts[0]):
        jobs = (row_jobs(spans, forward), row_jobs(spans, query), key_jobs(spans, counts[1], key))
        found.append(Layer(*(moved(x, device) for x in (spans, *jobs))))
    return tuple(found)


def stacked(seen: Sequence[Rectangle], rows: int) -> list[Tensor]:
    """Int32 [2, rows] on the host, one or more: spans that touch are joined, others go to the next layer."""
    found: list[Tensor] = []
    for one in sorted(seen, key=lambda r: (r.k_at, r.q_at)):
        at, past = _span(one)
        open_M = past > at
        for spans_2M in found:
            _place(spans_2M[:, one.q_at : one.q_at + one.q_count], at, past, open_M)
        if bool(open_M.any()):
            more = torch.zeros((2, rows), dtype=torch.int32)
            _place(more[:, one.q_at : one.q_at + one.q_count], at, past, open_M)
            found.append(more)
    return found


@lru_cache(maxsize=16)
def packed_layer(
    lengths: tuple[int, ...],
    *,
    causal: bool,
    window: int | None,
    sizes: tuple[Sizes, Sizes, Sizes],
    device: torch.device,
) -> Layer:
    """The spans of documents packed one behind the other, each over itself, and the jobs of the three kernels."""
    ends = torch.tensor(lengths).cumsum(0)
    total = int(ends[-1])
    row, length = torch.arange(total), torch.tensor(lengths)
    end = ends.repeat_interleave(length)
    first = end - length.repeat_interleave(length)
    past = row + 1 if causal else end
    if window is not None:
        first = torch.maximum(first, row - window + 1)
    spans = torch.stack((first, past)).to(torch.int32)
    forward, query, key = sizes
    jobs = row_jobs(spans, forward), row_jobs(spans, query), key_jobs(spans, total, key)
    return Layer(*(moved(x, device) for x in (spans, *jobs)))


def row_jobs(spans_2M: Tensor, sizes: Sizes) -> Tensor:
    """Jobs of tiles of rows: from the first key any row sees to the last, without a mask where all rows see all."""
    first, past = _tiled(spans_2M, sizes.rows)
    some = past > first
    low = torch.where(some, first, torch.iinfo(torch.int32).max).amin(1)
    high = past.amax(1)
    steps = (high - low).clamp(min=0).add(sizes.keys - 1) // sizes.keys
    left = (first.amax(1) - low).add(sizes.keys - 1) // sizes.keys
    full = ((past.amin(1) - low) // sizes.keys - left).clamp(min=0)
    full = torch.where(some.all(1), full, 0)
    starts = torch.arange(first.shape[0]) * sizes.rows
    return _longest_first(torch.stack((starts, low, torch.where(full > 0, left, 0), full, steps), 1))


def key_jobs(spans_2M: Tensor, keys: int, sizes: Sizes) -> Tensor:
    """Jobs of tiles of keys: from the first tile of rows that sees one to the last; the first run that sees all."""
    first, past = _tiled(spans_2M, sizes.rows)
    low = torch.arange(0, keys, sizes.keys)
    high = (low + sizes.keys).clamp(max=keys)
    some = past > first
    least = torch.where(some, first, torch.iinfo(torch.int32).max).amin(1)
    whole = some.all(1)
    tiles = (least, past.amax(1), torch.where(whole, first.amax(1), torch.iinfo(torch.int32).max), past.amin(1))
    begin, end, full_begin, full_end = (_in_order if _rising(*tiles, whole) else _anywhere)(low, high, *tiles)
    left = torch.where(full_end > full_begin, full_begin - begin, 0)
    full = (full_end - full_begin).clamp(min=0)
    return _longest_first(torch.stack((low, begin * sizes.rows, left, full, (end - begin).clamp(min=0)), 1))


Marks = tuple[Tensor, Tensor, Tensor, Tensor]
"""For each tile of keys: the first tile of rows that sees one, the one past the last; likewise those that see all."""


def _anywhere(low: Tensor, high: Tensor, least: Tensor, most: Tensor, first: Tensor, past: Tensor) -> Marks:
    """By looking at each tile of rows: it sees keys from `least` to `most`, and all of its rows those from `first` to
    `past`."""
    place = torch.arange(least.shape[0])[:, None]
    touched = (least[:, None] < high) & (most[:, None] > low)
    full = (first[:, None] <= low) & (past[:, None] >= high)
    full_begin = _first(full, place)
    return (
        _first(touched, place),
        torch.where(touched, place + 1, 0).amax(0),
        full_begin,
        _first(~full & (place >= full_begin), place),
    )


def _in_order(low: Tensor, high: Tensor, least: Tensor, most: Tensor, first: Tensor, past: Tensor) -> Marks:
    """The same where all of them rise from tile to tile: by bisection."""
    return (
        torch.searchsorted(most, low, right=True),
        torch.searchsorted(least, high),
        torch.searchsorted(past, high),
        torch.searchsorted(first, low, right=True),
    )


def _rising(least: Tensor, most: Tensor, first: Tensor, past: Tensor, whole: Tensor) -> bool:
    """Whether tiles can be bisected: all rows but those past the last see a key, and later ones later keys."""
    past[-1] = past[-1] if whole[-1] else most[-1]
    return bool(whole[:-1].all()) and all(bool((x[1:] >= x[:-1]).all()) for x in (least, most, first, past))


def _span(one: Rectangle) -> tuple[Tensor, Tensor]:
    """First key and the one past the last, for each row of a rectangle."""
    row = torch.arange(one.q_count, dtype=torch.int32)
    first = torch.zeros_like(row) if one.low is None else (row + one.low + 1).clamp(0, one.k_count)
    past = torch.full_like(row, one.k_count) if one.high is None else (row + one.high + 1).clamp(0, one.k_count)
    return first + one.k_at, past + one.k_at


def _place(spans_2M: Tensor, at_M: Tensor, past_M: Tensor, open_M: Tensor) -> None:
    """Puts spans where a layer has none yet or one that ends where they begin; those are no longer open."""
    first, end = spans_2M
    free = open_M & (first == end)
    joins = open_M & (first < end) & (end == at_M)
    first.copy_(torch.where(free, at_M, first))
    end.copy_(torch.where(free | joins, past_M, end))
    open_M &= ~(free | joins)


def _tiled(spans_2M: Tensor, rows: int) -> Iterator[Tensor]:
    """First and past as [tiles, rows]; rows past the last see nothing."""
    more = -spans_2M.shape[1] % rows
    wide = torch.nn.functional.pad(spans_2M, (0, more)).long()
    return iter(wide.reshape(2, -1, rows))


def _first(true: Tensor, place: Tensor) -> Tensor:
    """Where each column is true first; the number of rows where it is nowhere."""
    return torch.where(true, place, true.shape[0]).amin(0)


def _longest_first(jobs: Tensor) -> Tensor:
    """Int32, without those that take no step: the longest start first, so that none runs alone at the end."""
    kept = jobs[jobs[:, 4] > 0]
    return kept[kept[:, 4].sort(descending=True, stable=True).indices].to(torch.int32)
