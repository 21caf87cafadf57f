"""Tables that kernels are given, found for many rectangles and tiles at once, equal those found one by one."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fourfold.backends.kernels.block_spans import ALIGNED, Sizes, key_jobs, layers, row_jobs, stacked
from fourfold.ir.sequence.rectangles import Rectangle, Softmax, rectangles
from fourfold.ir.sequence.tokens import LAYOUTS, joined, laid

RECTANGLES = st.builds(
    Rectangle,
    st.integers(0, 30),
    st.integers(1, 20),
    st.integers(0, 60),
    st.integers(1, 30),
    st.none() | st.integers(-25, 35),
    st.none() | st.integers(-25, 35),
)
SIZES = st.builds(Sizes, st.integers(1, 16), st.integers(1, 16))
NEVER = torch.iinfo(torch.int32).max


@settings(max_examples=300, deadline=None)
@given(seen=st.lists(RECTANGLES, max_size=8))
def test_spans_of_any_rectangles(seen: list[Rectangle]) -> None:
    """Even of such as overlap, which no layout gives: the order in which a row meets them decides."""
    same(stacked(seen, 50), by_rectangle(seen, 50))


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=6).map(tuple),
    layout=st.sampled_from(sorted(LAYOUTS)),
    softmax=st.builds(Softmax, st.just(1.0), st.booleans(), st.none() | st.integers(1, 30)),
    ranks=st.integers(1, 4),
    pair=st.tuples(st.integers(0, 3), st.integers(0, 4)),
    sizes=SIZES,
)
def test_tables_of_what_ranks_see(
    lengths: tuple[int, ...],
    layout: str,
    softmax: Softmax,
    ranks: int,
    pair: tuple[int, int],
    sizes: Sizes,
) -> None:
    shards = laid(layout, lengths, ranks)
    queries, held = shards[pair[0] % ranks], (*shards, joined(shards))[pair[1] % (ranks + 1)]
    seen = rectangles(queries, held, softmax)
    found = stacked(seen, queries.tokens)
    same(found, by_rectangle(seen, queries.tokens))
    for spans in map(torch.from_numpy, found):
        jobs = row_jobs(spans.numpy(), sizes), key_jobs(spans.numpy(), held.tokens, sizes)
        same(jobs, (by_tile_of_rows(spans, sizes), by_tile_of_keys(spans, held.tokens, sizes)))


@settings(max_examples=300, deadline=None)
@given(
    spans=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)).map(sorted), min_size=1, max_size=60),
    sizes=SIZES,
)
def test_jobs_of_any_spans(spans: list[list[int]], sizes: Sizes) -> None:
    """Tiles that rise, fall or leave keys out between them."""
    spans_2M = torch.tensor(spans, dtype=torch.int32).T.contiguous()
    jobs = row_jobs(spans_2M.numpy(), sizes), key_jobs(spans_2M.numpy(), 40, sizes)
    same(jobs, (by_tile_of_rows(spans_2M, sizes), by_tile_of_keys(spans_2M, 40, sizes)))


@pytest.mark.parametrize("layout", ["zigzag", "striped"])
def test_tables_are_one_tensor_with_aligned_parts(layout: str) -> None:
    queries, held = laid(layout, (70, 5, 33), 2)
    seen, sizes = rectangles(queries, held, Softmax(1.0, causal=True)), (Sizes(8, 4), Sizes(4, 8), Sizes(8, 8))
    found = layers(seen, (queries.tokens, held.tokens), sizes, torch.device("cpu"))
    assert len(found) == len(stacked(seen, queries.tokens))
    tables = [table for one in found for table in (one.spans_2M, one.forward, one.query, one.key)]
    assert len({table.untyped_storage().data_ptr() for table in tables}) == 1
    assert all(table.storage_offset() % ALIGNED == 0 and table.is_contiguous() for table in tables)
    for one, spans in zip(found, stacked(seen, queries.tokens), strict=True):
        wanted = (spans, row_jobs(spans, sizes[0]), row_jobs(spans, sizes[1]), key_jobs(spans, held.tokens, sizes[2]))
        same(wanted, (one.spans_2M, one.forward, one.query, one.key))


def test_no_rectangle_has_no_layer() -> None:
    assert stacked((), 3) == []
    assert layers((), (3, 3), (Sizes(1, 1),) * 3, torch.device("cpu")) == ()


def same(found: Sequence[object], wanted: Sequence[Tensor]) -> None:
    assert [torch.as_tensor(one).tolist() for one in found] == [one.tolist() for one in wanted]
    assert all(torch.as_tensor(one).dtype == torch.int32 for one in found)


def by_rectangle(seen: Sequence[Rectangle], rows: int) -> list[Tensor]:
    """`stacked`, rectangle by rectangle and row by row."""
    found: list[Tensor] = []
    for one in sorted(seen, key=lambda r: (r.k_at, r.q_at)):
        for i in range(one.q_count):
            first = 0 if one.low is None else min(max(i + one.low + 1, 0), one.k_count)
            past = one.k_count if one.high is None else min(max(i + one.high + 1, 0), one.k_count)
            if first < past:
                _put(found, rows, one.q_at + i, (one.k_at + first, one.k_at + past))
    return found


def _put(found: list[Tensor], rows: int, row: int, span: tuple[int, int]) -> None:
    for layer in found:
        first, past = layer[:, row].tolist()
        if first == past or past == span[0]:
            layer[:, row] = torch.tensor((span[0] if first == past else first, span[1]))
            return
    found.append(torch.zeros((2, rows), dtype=torch.int32))
    found[-1][:, row] = torch.tensor(span)


def by_tile_of_rows(spans_2M: Tensor, sizes: Sizes) -> Tensor:
    """`row_jobs`, tile by tile."""
    found = []
    for start in range(0, spans_2M.shape[1], sizes.rows):
        rows = _tile(spans_2M, start, sizes.rows)
        some = [(first, past) for first, past in rows if first < past]
        if not some:
            continue
        low, high = min(first for first, _ in some), max(past for _, past in rows)
        left = -(-(max(first for first, _ in some) - low) // sizes.keys)
        full = (min(past for _, past in some) - low) // sizes.keys - left if len(some) == len(rows) else 0
        full = max(full, 0)
        found.append((start, low, left if full else 0, full, -(-(high - low) // sizes.keys)))
    return _longest_first(found)


def by_tile_of_keys(spans_2M: Tensor, keys: int, sizes: Sizes) -> Tensor:
    """`key_jobs`, by looking at each tile of rows for each tile of keys."""
    tiles = [_tile(spans_2M, start, sizes.rows) for start in range(0, spans_2M.shape[1], sizes.rows)]
    found = []
    for low in range(0, keys, sizes.keys):
        high = min(low + sizes.keys, keys)
        touched, whole = [], []
        for rows in tiles:
            some = [(first, past) for first, past in rows if first < past]
            least = min((first for first, _ in some), default=NEVER)
            touched.append(least < high and max(past for _, past in rows) > low)
            whole.append(len(some) == len(rows) and all(first <= low and past >= high for first, past in rows))
        if True not in touched:
            continue
        begin, end = touched.index(True), len(touched) - touched[::-1].index(True)
        at = whole.index(True) if True in whole else len(whole)
        full = [*whole[at:], False].index(False)
        found.append((low, begin * sizes.rows, at - begin if full else 0, full, end - begin))
    return _longest_first(found)


def _tile(spans_2M: Tensor, start: int, rows: int) -> list[list[int]]:
    found: list[list[int]] = spans_2M[:, start : start + rows].T.tolist()
    return found + [[0, 0]] * (rows - len(found))


def _longest_first(jobs: list[tuple[int, int, int, int, int]]) -> Tensor:
    return torch.tensor(sorted(jobs, key=lambda job: -job[4]), dtype=torch.int32).reshape(-1, 5)
