"""FlexSP's parts against brute force: buckets, cuts, groups; nodes of any size; the same plan every time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import combinations, pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold.hardware import load
from fourfold.hardware.errors import InfeasibleError
from fourfold.ir.batch_rules import Bounds, complaints
from fourfold.passes.batch.flexsp import flexsp
from fourfold.passes.batch.grouping.blaster import blasted
from fourfold.passes.batch.grouping.bucketing import Bucket, bucketed
from fourfold.passes.batch.grouping.group_counts import NEAR, recounted
from fourfold.passes.batch.grouping.grouping import Offer, dealt, grouped
from fourfold.passes.batch.timing.refusal import room
from fourfold.passes.batch.timing.terms import Layer, Terms
from fourfold.passes.batch.timing.timing import timed
from fourfold.passes.sequence.tables import Heads

MACHINE = load("dgx-h200:64")
PLENTY = 10**9


@cache
def terms(ranks: int, capacity: int, *, node: int = 8, heads: int = 8) -> Terms:
    """A small model under ZeRO 3, where all ranks go in step; attention is most of a micro-step."""
    layer = Layer(Heads(8, 2, 64, "bfloat16", causal=True), 400, 1.0)
    return Terms(MACHINE, Bounds(ranks, capacity, 3, heads), 1, node, 1e-5, 1e-7, 0.0, (layer,), "float32")


def cuts(count: int, parts: int) -> Iterator[tuple[int, ...]]:
    """Every way to cut `count` things in a row in so many parts: where each begins, and the end."""
    return ((0, *inner, count) for inner in combinations(range(1, count), parts - 1))


def added(lengths: Sequence[int], parts: int) -> int:
    """The least tokens added by any buckets of neighbours in length."""
    ordered = sorted(lengths)
    return min(
        sum(sum(ordered[b - 1] - one for one in ordered[a:b]) for a, b in pairwise(cut))
        for n in range(1, parts + 1)
        for cut in cuts(len(ordered), min(n, len(ordered)))
    )


@given(st.lists(st.integers(1, 60), min_size=1, max_size=9), st.integers(1, 5))
def test_buckets_add_the_least(lengths: list[int], count: int) -> None:
    found = bucketed(lengths, room=PLENTY, least=count)
    assert len(found) == min(count, len(set(lengths)))
    assert sum(one.length * one.count for one in found) - sum(lengths) == added(lengths, count)
    assert held(lengths, found)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=9), st.integers(0, 100))
def test_buckets_grow_until_what_they_add_leaves_room(lengths: list[int], spare: int) -> None:
    found = bucketed(lengths, room=sum(lengths) + spare, least=2)
    fewest = next(n for n in range(2, 99) if 2 * added(lengths, n) <= spare)
    assert len(found) == min(fewest, len(set(lengths)))
    assert held(lengths, found)


def held(lengths: Sequence[int], buckets: Sequence[Bucket]) -> bool:
    """Whether each length, the shortest first, has a place in a bucket of no shorter ones."""
    places = [one.length for one in buckets for _ in range(one.count)]
    return len(places) == len(lengths) and all(a <= b for a, b in zip(sorted(lengths), places, strict=True))


@given(st.lists(st.integers(1, 60), min_size=1, max_size=9), st.integers(1, 5))
def test_cuts_have_the_least_of_most_tokens(lengths: list[int], count: int) -> None:
    runs = blasted(lengths, count)
    assert len(runs) <= count and [i for run in runs for i in run] == list(range(len(lengths)))
    least = min(
        max(sum(lengths[a:b]) for a, b in pairwise(cut)) for cut in cuts(len(lengths), min(count, len(lengths)))
    )
    assert max(sum(lengths[i] for i in run) for run in runs) == least


def exhaustive(lengths: Sequence[int], offer: Offer) -> float:
    """Seconds of the best groups: every multiset of powers of two that the pool holds, every choice of theirs."""
    ranks, best = offer.terms.bounds.ranks, float("inf")
    for counts in product(*(range(ranks // degree + 1) for degree in offer.degrees)):
        degrees = [k for k, count in enumerate(counts) for _ in range(count)]
        if sum(offer.degrees[k] for k in degrees) != ranks:
            continue
        for chosen in product(range(len(degrees)), repeat=len(lengths)):
            loads, tokens = [0.0] * len(degrees), [0] * len(degrees)
            for length, group in zip(lengths, chosen, strict=True):
                loads[group] += offer.seconds(length)[degrees[group]]
                tokens[group] += length
            if all(tokens[g] <= offer.rooms[k] for g, k in enumerate(degrees)):
                best = min(best, max(loads))
    return offer.terms.fixed + best


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9000), min_size=1, max_size=5), st.sampled_from((1, 2, 3, 4)), st.booleans())
def test_groups_are_near_the_best(lengths: list[int], ranks: int, tight: bool) -> None:
    lengths = sorted(lengths, reverse=True)
    widest = 2 ** (ranks.bit_length() - 1)
    capacity = max(-(-lengths[0] // widest) + 2, -(-sum(lengths) // ranks) * 5 // 4) if tight else 50_000
    offer = Offer(terms(ranks, capacity))
    best = exhaustive(lengths, offer)
    found = grouped(lengths, offer, tries=99, close=0.0)
    if found is None:
        return
    assert sorted(i for group in found.members for i in group) == list(range(len(lengths)))
    better = recounted(lengths, offer, found, effort=1.0)
    assert sorted(i for group in better.members for i in group) == list(range(len(lengths)))
    assert offer.bound(lengths) <= best * (1 + 1e-9) and best <= better.seconds * (1 + 1e-9)
    assert better.seconds <= min(found.seconds, best * (1 + NEAR + 1e-3))


def test_the_solver_finds_what_the_search_does_not() -> None:
    """Five on two ranks: longest first leaves (3, 2, 2) and (3, 2), and there is (3, 3) and (2, 2, 2)."""
    linear = replace(terms(2, 10_000), fixed=0.0, linear=1.0, layers=())
    offer = Offer(linear)
    lengths = (3000, 3000, 2000, 2000, 2000)
    start = dealt(lengths, (2, 0), offer)
    assert start is not None and start.seconds == pytest.approx(7000)
    assert recounted(lengths, offer, start, effort=1.0).seconds == pytest.approx(6000)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 3000), min_size=1, max_size=30),
    st.integers(1, 24),
    st.sampled_from((1, 2, 3, 5, 6, 8)),
    st.sampled_from((1, 2, 3, 64, 700)),
)
def test_any_nodes_and_any_room(lengths: list[int], ranks: int, node: int, capacity: int) -> None:
    given_terms = terms(ranks, capacity, node=node, heads=2)
    widest = max(room(2**k, given_terms) for k in range(ranks.bit_length()))
    if max(lengths) > widest:
        with pytest.raises(InfeasibleError, match=f"flexsp cannot place sequence .* of {max(lengths):,} tokens"):
            flexsp(lengths, given_terms)
        return
    batch = flexsp(lengths, given_terms, effort=0.0)
    assert complaints(batch, given_terms.bounds) == ()
    for team in batch.teams:
        n, first = len(team.ranks), team.ranks[0]
        assert n & (n - 1) == 0 and team.ranks == tuple(range(first, first + n))
        assert team.method == ("whole" if n == 1 else "ulysses" if n == 2 else "ring")
    steps: list[list[int]] = [[] for _ in range(batch.micro_steps)]
    for team in batch.teams:
        steps[team.micro_step] += team.ranks
    assert all(own and len(own) == len(set(own)) for own in steps)


def test_long_sequences_get_wide_groups_and_short_ones_narrow() -> None:
    lengths = [60_000, *(500 + 7 * i for i in range(300))]
    given_terms = terms(32, 8192)
    batch = flexsp(lengths, given_terms)
    wide = {len(piece.ranks) for piece in batch.pieces if piece.sequence == 0}
    narrow = {len(piece.ranks) for piece in batch.pieces if piece.sequence}
    assert min(wide) >= 8 and min(narrow) == 1
    assert str(batch) == str(flexsp(lengths, replace(given_terms)))


def test_groups_are_no_narrower_than_asked() -> None:
    lengths = [60_000, *(500 + 7 * i for i in range(300))]
    given_terms = terms(32, 8192)
    batch = flexsp(lengths, given_terms, narrowest=2)
    assert complaints(batch, given_terms.bounds) == ()
    assert min(len(piece.ranks) for piece in batch.pieces) == 2
    assert timed(batch, given_terms).seconds >= timed(flexsp(lengths, given_terms), given_terms).seconds
    assert {len(piece.ranks) for piece in flexsp([500], terms(3, 8192), narrowest=8).pieces} == {2}


def test_the_search_prices_as_plans_are_priced() -> None:
    """Micro-steps one after the other, each as long as its slowest group; tokens a rank differ by one at most."""
    lengths = [200 + 37 * i % 3000 for i in range(120)]
    given_terms = terms(16, 8192)
    offer = Offer(given_terms)
    batch = flexsp(lengths, given_terms)
    slowest = [0.0] * batch.micro_steps
    for team in batch.teams:
        at = offer.degrees.index(len(team.ranks))
        own = sum(offer.seconds(piece.tokens)[at] for piece in team.pieces)
        slowest[team.micro_step] = max(slowest[team.micro_step], given_terms.fixed + own)
    assert timed(batch, given_terms).seconds == pytest.approx(sum(slowest), rel=1e-3)
