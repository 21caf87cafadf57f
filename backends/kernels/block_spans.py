"""What each stored query sees of stored keys as one span of keys a row, and the tiles a kernel visits for it.

Documents store their tokens by position, so that causal masks, windows and documents all leave a row one span of keys;
where storage scatters a document, its rows need further layers of spans. All is found for many rectangles or tiles at
once, on the host, and goes to the device as one copy. Letters: M rows of queries, R rectangles, T tiles, K tiles of
keys where T are of rows, J jobs.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fourfold.backends.communication.aside import moved
from fourfold.ir.sequence.rectangles import Rectangle

Numbers = npt.NDArray[np.int32]

JOB = 5
"""Numbers of a job: first row (or key) of its tile; the first key (or row) it visits; steps of a mask, of none, all."""
NEVER = np.iinfo(np.int32).max
ALIGNED = 64
"""Numbers from one table to the next: a kernel is compiled for addresses of whole 16 bytes, and must find no others."""


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


def stream_of(device: torch.device) -> int:
    """The stream that kernels are launched on now; a table copied there may not be there yet for another."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


@lru_cache(maxsize=128)
def layers(
    seen: tuple[Rectangle, ...],
    counts: tuple[int, int],
    sizes: tuple[Sizes, Sizes, Sizes],
    device: torch.device,
    stream: int = 0,
) -> tuple[Layer, ...]:
    """The spans of all rectangles of (rows, keys), and the jobs of the three kernels' sizes, for each layer.

    stream: where they are read; another must not, as the copy to the device may not be done yet.
    """
    return _placed([_tables(spans, counts[1], sizes) for spans in stacked(seen, counts[0])], device)


@lru_cache(maxsize=64)
def packed_layer(
    lengths: tuple[int, ...],
    *,
    causal: bool,
    window: int | None,
    sizes: tuple[Sizes, Sizes, Sizes],
    device: torch.device,
) -> Layer:
    """The spans of documents packed one behind the other, each over itself, and the jobs of the three kernels."""
    length = np.asarray(lengths)
    ends = length.cumsum()
    total = int(ends[-1])
    row, end = np.arange(total), ends.repeat(length)
    first = (ends - length).repeat(length)
    past = row + 1 if causal else end
    if window is not None:
        first = np.maximum(first, row - window + 1)
    spans_2M = np.stack((first, past)).astype(np.int32)
    return _placed([_tables(spans_2M, total, sizes)], device)[0]


def stacked(seen: Sequence[Rectangle], rows: int) -> list[Numbers]:
    """Int32 [2, rows] on the host, one or more: spans that touch are joined, others go to the next layer.

    A row meets its spans by their first stored key, and each goes to the first layer that has none for the row yet or
    one that ends where it begins.
    """
    found: list[Numbers] = []
    for round_R in _rounds(sorted(seen, key=lambda r: (r.k_at, r.q_at))):
        row, at, past = _spans(round_R)
        for spans_2M in found:
            first, end = spans_2M[:, row]
            free = first == end
            fits = free | (end == at)
            spans_2M[0, row[fits]], spans_2M[1, row[fits]] = np.where(free, at, first)[fits], past[fits]
            row, at, past = row[~fits], at[~fits], past[~fits]
        if len(row):
            more = np.zeros((2, rows), np.int32)
            more[0, row], more[1, row] = at, past
            found.append(more)
    return found


def row_jobs(spans_2M: Numbers, sizes: Sizes) -> Numbers:
    """Jobs of tiles of rows: from the first key any row sees to the last, without a mask where all rows see all."""
    (low, high), (first, past) = _tiled(spans_2M, sizes.rows)
    steps = -(-np.maximum(high - low, 0) // sizes.keys)
    left = -(-(first - low) // sizes.keys)
    full = np.where(first < NEVER, np.maximum((past - low) // sizes.keys - left, 0), 0)
    return _longest_first(np.arange(len(low)) * sizes.rows, low, np.where(full > 0, left, 0), full, steps)


def key_jobs(spans_2M: Numbers, keys: int, sizes: Sizes) -> Numbers:
    """Jobs of tiles of keys: from the first tile of rows that sees one to the last; the first run that sees all."""
    (least, most), (first, past) = _tiled(spans_2M, sizes.rows)
    low = np.arange(0, keys, sizes.keys)
    begin, end = _meeting(least // sizes.keys, -(-most // sizes.keys), len(low))
    # The last tile of keys may be cut short, and is seen whole by who sees the last key.
    whole = -(-first // sizes.keys), np.where(past >= keys, len(low), past // sizes.keys)
    full_begin, _ = _meeting(*whole, len(low))
    full = _unmet(*whole, full_begin) - full_begin
    left = np.where(full > 0, full_begin - begin, 0)
    return _longest_first(low, begin * sizes.rows, left, full, np.maximum(end - begin, 0))


def _tables(spans_2M: Numbers, keys: int, sizes: tuple[Sizes, Sizes, Sizes]) -> tuple[Numbers, ...]:
    """What a Layer holds, on the host."""
    forward, query, key = sizes
    return spans_2M, row_jobs(spans_2M, forward), row_jobs(spans_2M, query), key_jobs(spans_2M, keys, key)


def _placed(tables: Sequence[tuple[Numbers, ...]], device: torch.device) -> tuple[Layer, ...]:
    """All tables on the device, by one copy."""
    flat = [one for layer in tables for one in layer]
    ends = np.cumsum([-(-one.size // ALIGNED) * ALIGNED for one in flat]).tolist()
    whole = np.empty(ends[-1] if ends else 0, np.int32)
    starts = [0, *ends[:-1]]
    for start, one in zip(starts, flat, strict=False):
        whole[start : start + one.size] = one.ravel()
    there = moved(torch.from_numpy(whole), device)
    views = (there[start : start + one.size].view(one.shape) for start, one in zip(starts, flat, strict=False))
    return tuple(Layer(*four) for four in zip(*(views,) * 4, strict=True))


def _rounds(seen: Sequence[Rectangle]) -> Iterator[list[Rectangle]]:
    """Rectangles in turns: in one turn no two share a row, and each comes after those before it that it shares with."""
    edges = sorted({edge for one in seen for edge in (one.q_at, one.q_at + one.q_count)})
    taken = [0] * len(edges)
    rounds: list[list[Rectangle]] = []
    for one in seen:
        here = slice(bisect_left(edges, one.q_at), bisect_left(edges, one.q_at + one.q_count))
        turn = max(taken[here], default=0)
        taken[here] = [turn + 1] * (here.stop - here.start)
        if turn == len(rounds):
            rounds.append([])
        rounds[turn].append(one)
    return iter(rounds)


def _spans(round_R: Sequence[Rectangle]) -> tuple[Numbers, Numbers, Numbers]:
    """Of all rows of the rectangles that see a key: the row, its first key and the one past the last."""
    q_at, count, k_at, keys, low, past = np.array(
        [
            (
                one.q_at,
                one.q_count,
                one.k_at,
                one.k_count,
                -one.q_count if one.low is None else one.low + 1,
                one.k_count if one.high is None else one.high + 1,
            )
            for one in round_R
        ],
        np.int32,
    ).T
    before = count.cumsum(dtype=np.int32) - count
    row = np.arange(int(count.sum()), dtype=np.int32)
    inside = row - before.repeat(count)
    keys, k_at = keys.repeat(count), k_at.repeat(count)
    first = np.clip(inside + low.repeat(count), 0, keys)
    past = np.clip(inside + past.repeat(count), 0, keys)
    some = past > first
    return (row + (q_at - before).repeat(count))[some], (k_at + first)[some], (k_at + past)[some]


def _tiled(spans_2M: Numbers, rows: int) -> tuple[tuple[Numbers, Numbers], tuple[Numbers, Numbers]]:
    """[T] each: the first key that any row of a tile sees and the one past the last; the same of keys that all see.

    NEVER stands for the first where there is none; rows past the last see nothing.
    """
    wide = np.pad(spans_2M, ((0, 0), (0, -spans_2M.shape[1] % rows)))
    first, past = wide.reshape(2, -1, rows)
    some = past > first
    least = np.where(some, first, NEVER).min(1)
    shared = np.where(some.all(1), first.max(1), NEVER)
    hull, both = (least, past.max(1)), (shared, past.min(1))
    return hull, both


def _meeting(begin_T: Numbers, end_T: Numbers, count: int) -> tuple[Numbers, Numbers]:
    """Of each of so many places: the first tile whose [begin, end) has it (T: none), and the one past the last (0).

    A span of places is two of a power of 2 that overlap, and each of these hands what it knows to its halves.
    """
    (tile,) = np.nonzero(begin_T < end_T)
    begin, end = begin_T[tile], end_T[tile]
    power = np.frexp(end - begin)[1] - 1
    levels = int(power.max(initial=0)) + 1
    first, past = np.full((levels, count), len(begin_T)), np.zeros((levels, count), np.int64)
    for at in (begin, end - (1 << power)):
        np.minimum.at(first, (power, at), tile)
        np.maximum.at(past, (power, at), tile + 1)
    for level in range(levels - 1, 0, -1):
        half = 1 << (level - 1)
        for known, choose in ((first, np.minimum), (past, np.maximum)):
            choose(known[level - 1], known[level], out=known[level - 1])
            choose(known[level - 1, half:], known[level, :-half], out=known[level - 1, half:])
    return first[0], past[0]


def _unmet(begin_T: Numbers, end_T: Numbers, start_K: Numbers) -> Numbers:
    """Of each place: the first tile from `start` on whose [begin, end) has it not, T where all have it; by doubling."""
    count, place = len(begin_T), np.arange(len(start_K))
    last = np.append(begin_T, NEVER), np.append(end_T, 0)
    runs = [last]
    while 1 << len(runs) <= count:
        begin, end = runs[-1]
        ahead = np.minimum(np.arange(count + 1) + (1 << (len(runs) - 1)), count)
        runs.append((np.maximum(begin, begin[ahead]), np.minimum(end, end[ahead])))
    found = start_K.copy()
    for power in reversed(range(len(runs))):
        begin, end = runs[power]
        found += ((begin[found] <= place) & (place < end[found])).astype(found.dtype) << power
    return found


def _longest_first(*jobs: Numbers) -> Numbers:
    """Int32 [J, 5], without those that take no step: the longest start first, so that none runs alone at the end."""
    found = np.stack(jobs, 1).astype(np.int32)
    found = found[found[:, 4] > 0]
    return found[np.argsort(-found[:, 4], kind="stable")]
