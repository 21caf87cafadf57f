"""Layouts hold every token once, rectangles every visible pair once, and heads are dealt out whole."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold.ir.sequence.rectangles import Rectangle, Softmax, rectangles
from fourfold.ir.sequence.route import counted, route
from fourfold.ir.sequence.tokens import LAYOUTS, Shard, joined, laid, ordered, shard, zigzag_tokens
from fourfold.ir.sequence.ulysses import split_heads

Token = tuple[int, int]
"""Document and position."""

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=5).map(tuple)
SOFTMAXES = st.builds(Softmax, st.just(1.0), st.booleans(), st.none() | st.integers(1, 12))


def tokens(held: Shard) -> list[Token]:
    """What a shard stores, in order."""
    assert [run.at for run in held.runs] == [sum(r.count for r in held.runs[:i]) for i in range(len(held.runs))]
    return [(run.document, run.start + i * run.step) for run in held.runs for i in range(run.count)]


@st.composite
def shards(draw: st.DrawFn) -> Shard:
    """Any runs of two documents, each document by position."""
    pieces = []
    for document in draw(st.permutations((0, 1))):
        at = 0
        for _ in range(draw(st.integers(0, 2))):
            start, count, step = at + draw(st.integers(0, 6)), draw(st.integers(1, 6)), draw(st.integers(1, 3))
            pieces.append((document, start, count, step))
            at = start + (count - 1) * step + 1
    return shard(pieces)


@pytest.mark.parametrize("layout", LAYOUTS)
@given(lengths=LENGTHS, cut=st.sampled_from([(n, u) for n in range(1, 9) for u in range(1, n + 1) if n % u == 0]))
@settings(max_examples=40, deadline=None)
def test_a_layout_holds_every_token_once(layout: str, lengths: tuple[int, ...], cut: tuple[int, int]) -> None:
    n, inner = cut
    found = laid(layout, lengths, n, inner)
    assert len(found) == n
    held = Counter(token for one in found for token in tokens(one))
    assert held == Counter((document, i) for document, length in enumerate(lengths) for i in range(length))
    # Zigzag deals 2n chunks in turn, striping turns by document; cutting a shard on adds one.
    most = {"contiguous": 1, "zigzag": 2, "striped": len(lengths)}[layout] + (inner > 1)
    assert max(one.tokens for one in found) - min(one.tokens for one in found) <= most


@given(lengths=LENGTHS, n=st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_tokens_of_a_zigzag_are_those_of_its_shards(lengths: tuple[int, ...], n: int) -> None:
    assert zigzag_tokens(lengths, n) == [one.tokens for one in laid("zigzag", lengths, n)]


@given(shards())
@settings(max_examples=60, deadline=None)
def test_ordered_stores_the_same_by_document_and_position(held: Shard) -> None:
    found, index = ordered(held)
    stored = tokens(held)
    assert tokens(found) == [stored[i] for i in (range(len(stored)) if index is None else index)] == sorted(stored)


@given(LENGTHS, st.sampled_from((2, 3, 4)))
@settings(max_examples=30, deadline=None)
def test_stretches_of_a_striped_shard_are_ordered_into_one_run_a_document(lengths: tuple[int, ...], u: int) -> None:
    """Were they single tokens, rectangles would be as many as pairs."""
    found = ordered(joined(laid("striped", lengths, 2 * u, u)[:u]))[0]
    assert all(sum(run.count for run in runs) < 3 or len(runs) == 1 for runs in found.by_document.values())


def seen_by(one: Rectangle) -> list[tuple[int, int]]:
    """Its visible (row, key), as its docstring says."""
    return [
        (one.q_at + i, one.k_at + j)
        for i in range(one.q_count)
        for j in range(one.k_count)
        if (one.high is None or j <= i + one.high) and (one.low is None or j > i + one.low)
    ]


def visible(queries: Shard, keys: Shard, softmax: Softmax) -> set[tuple[int, int]]:
    """(row, key) that the softmax shows, pair by pair."""
    return {
        (i, j)
        for i, (document, q) in enumerate(tokens(queries))
        for j, (other, k) in enumerate(tokens(keys))
        if document == other and (k <= q or not softmax.causal) and (softmax.window is None or k > q - softmax.window)
    }


@given(shards(), shards(), SOFTMAXES)
@settings(max_examples=300, deadline=None)
def test_rectangles_show_each_visible_pair_once_and_no_other(queries: Shard, keys: Shard, softmax: Softmax) -> None:
    found = rectangles(queries, keys, softmax)
    pairs = [pair for one in found for pair in seen_by(one)]
    assert len(set(pairs)) == len(pairs)
    assert set(pairs) == visible(queries, keys, softmax)
    for one in found:
        rows = {row for row, _ in seen_by(one)}
        assert one.pairs == len(seen_by(one))
        assert rows <= set(range(*one.rows))


@pytest.mark.parametrize("layout", LAYOUTS)
@given(LENGTHS, SOFTMAXES, st.integers(1, 5))
@settings(max_examples=15, deadline=None)
def test_queries_pass_every_rank_that_sees_them(
    layout: str, lengths: tuple[int, ...], softmax: Softmax, n: int
) -> None:
    """What goes on from one rank is what the next holds, and what comes home is what was worked on."""
    held = laid(layout, lengths, n)
    routes = [route(held, softmax, rank) for rank in range(n)]
    for owner in range(n):
        rows = list(range(held[owner].tokens))
        for step in range(n):
            rank = (owner - step) % n
            stop = routes[rank][step]
            assert (stop.owner, stop.rows, routes[owner][step].guest) == (owner, len(rows), rank)
            worked = [rows[i] for span in stop.seen for i in range(*span)]
            home = [i for span in routes[owner][step].home for i in range(*span)]
            assert worked == home and counted(stop.seen) == len(home)
            assert tokens(stop.queries) == [tokens(held[owner])[i] for i in worked]
            assert {i for i, _ in visible(held[owner], held[rank], softmax)} <= set(worked)
            rows = [rows[i] for span in stop.onward for i in range(*span)]


@given(st.integers(1, 9), st.integers(1, 6), st.integers(1, 16))
@settings(max_examples=200, deadline=None)
def test_heads_are_dealt_in_order_with_the_keys_they_read(kv_heads: int, group: int, n: int) -> None:
    heads = kv_heads * group
    found = split_heads(heads, kv_heads, n)
    assert [h for one in found for h in range(one.start, one.stop)] == list(range(heads))
    sizes = [one.stop - one.start for one in found]
    assert len(found) == n and max(sizes) - min(sizes) <= 1
    for one in found:
        wanted = [h // group for h in range(one.start, one.stop)]
        assert sorted(set(wanted)) == list(range(one.first, one.last))
        each = (one.stop - one.start) // max(1, one.last - one.first)
        places = one.repeat or tuple(i // each for i in range(one.stop - one.start))
        assert [one.first + place for place in places] == wanted
