"""Placements looked at: bars that last as long as the price, bytes as the methods send them, and why a sequence is
where it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold.hardware import load
from fourfold.ir.batch import BatchPlan, Move, Offload, Piece
from fourfold.ir.batch_rules import Bounds
from fourfold.ir.chart import Bar, Chart, covered
from fourfold.ir.coarse import coarse
from fourfold.ir.drawing import svg
from fourfold.ir.gantt import text
from fourfold.ir.plan import SIZES, Sharing
from fourfold.ir.record import Sent
from fourfold.passes.batch import POLICIES
from fourfold.passes.batch.showing.charting import COLOURS, charted
from fourfold.passes.batch.showing.explain import explained
from fourfold.passes.batch.showing.talk import sent, talk
from fourfold.passes.batch.timing.terms import Layer, Terms
from fourfold.passes.batch.timing.timing import timed
from fourfold.passes.sequence.tables import Heads, recorded

Golden = Callable[..., None]
HEADS = Heads(8, 2, 64, "bfloat16", causal=True)


def terms(ranks: int = 4, capacity: int = 4096, *, zero: int = 1, node: int = 2, stages: int = 1) -> Terms:
    """A small model on nodes of two ranks, so that a team of four sends over both kinds of links."""
    known = {"kept": 1e4, "host": 1e10, "stages": stages, "slowest": 1.5 / stages}
    bounds = Bounds(ranks, capacity, zero, 8)
    layers = (Layer(HEADS, 4, 2.0),)
    return Terms(load("dgx-h200:8"), bounds, 1, node, 1e-3, 1e-6, 1e-2, layers, "float32", **known)  # type: ignore[arg-type]


PLACED = BatchPlan(
    "by hand",
    (4096, 2048, 512, 256, 128, 4096),
    4,
    4096,
    (
        Piece(0, 0, 4096, 0, (0, 1, 2, 3), "ring"),
        Piece(1, 0, 2048, 0, (0, 1), "ulysses"),
        Piece(2, 0, 512, 0, (2,)),
        Piece(3, 0, 256, 1, (2,)),
        Piece(4, 0, 128, 1, (2,)),
        Piece(5, 0, 2048, 1, (0, 1), "gather_kv"),
        Piece(5, 2048, 4096, 2, (0, 1), "gather_kv"),
    ),
    moves=(Move(1, 0, 2, 100),),
    offloads=(Offload(1, 1, 0.25),),
)


def test_a_placement_drawn(golden: Golden) -> None:
    golden("\n".join(text([charted(PLACED, terms(stages=2))])))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.sampled_from((7, 64, 500, 3000)), min_size=1, max_size=30),
    st.sampled_from((1, 3)),
    st.sampled_from((1, 3)),
    st.sampled_from(sorted(POLICIES)),
)
def test_bars_are_the_price(lengths: list[int], zero: int, stages: int, policy: str) -> None:
    given_terms = terms(zero=zero, stages=stages)
    batch = POLICIES[policy](lengths, given_terms)
    chart, time = charted(batch, given_terms), timed(batch, given_terms)
    assert chart.seconds == pytest.approx(time.seconds)
    for rank, busy in enumerate(time.busy):
        own = sorted((bar for bar in chart.bars if bar.rank == rank), key=lambda bar: bar.start)
        ran = covered([bar for bar in own if bar.kind not in ("fill", "once")])
        assert ran == pytest.approx(given_terms.slowest * busy)
        assert all(one.stop <= other.start + 1e-9 for one, other in pairwise(own))
        assert own[-1].stop == pytest.approx(time.seconds)
    assert {look.letter for kind, look in chart.looks.items() if kind.isdigit()} <= set("ABCDEFGHIJKLMNOP")


def test_long_sequences_have_letters_and_short_ones_none() -> None:
    lengths = [*range(100, 130), 3000, 2000]
    given_terms = terms()
    chart = charted(POLICIES["pack"](lengths, given_terms), given_terms)
    assert [look.words for kind, look in chart.looks.items() if kind.isdigit()] == ["30:3,000", "31:2,000"]
    many = charted(POLICIES["static_cp"]([4000] * 40, given_terms), given_terms)
    assert sum(kind.isdigit() for kind in many.looks) <= len(COLOURS)


def majority(chart: Chart, each: int, time: float) -> str:
    """What most of the ranks of the first group run at a time: the slow obvious version."""
    running = [bar.kind for bar in chart.bars if bar.rank < each and bar.start <= time < bar.stop]
    return max(sorted(set(running)), key=running.count) if len(running) >= each / 2 else ""


def test_many_ranks_are_drawn_as_few_rows() -> None:
    bars = [Bar(rank, "compute", "x", 0.0, 1.0 + rank, "F" if rank % 4 else "B") for rank in range(10)]
    chart = Chart("x", tuple(bars), 16.0, {rank: f"rank {rank}" for rank in range(10)})
    assert coarse(chart, 10) is chart
    few = coarse(chart, 3)
    assert dict(few.ranks) == {0: "ranks 0-3", 1: "ranks 4-7", 2: "ranks 8-9"} and few.seconds == 16.0
    for time in (0.5, 1.5, 2.5, 3.5, 5.0):
        here = [bar.kind for bar in few.bars if bar.rank == 0 and bar.start <= time < bar.stop]
        assert "".join(here) == majority(chart, 4, time)


def test_a_placement_as_svg() -> None:
    root = ElementTree.fromstring(svg([coarse(charted(PLACED, terms()), 2)]))
    space = {"svg": "http://www.w3.org/2000/svg"}
    words = {one.text for one in root.iterfind(".//svg:text", space)}
    assert {"ranks 0-1", "ranks 2-3", "0:4,096", "5:4,096", "once a step"} <= words
    boxes = [one.attrib for one in root.iterfind("svg:rect[@x]", space)]
    assert max(float(box["y"]) + float(box["height"]) for box in boxes) <= float(root.attrib["height"])
    assert max(float(box["x"]) + float(box["width"]) for box in boxes) <= float(root.attrib["width"])


def by_hand(length: int, ranks: Sequence[int], sharing: Sharing, *, node: int) -> dict[int, list[int]]:
    """Bytes of one document, each rank of the team recorded by itself."""
    found = {rank: [0, 0] for rank in ranks}
    for place, rank in enumerate(ranks):
        one = recorded(sharing, len(ranks), HEADS, length, place)
        for times, events in ((2, one.forward), (1, one.backward)):
            for event in events:
                if isinstance(event, Sent):
                    found[rank][rank // node != ranks[event.peer] // node] += 4 * times * event.bytes
    return found


@pytest.mark.parametrize(
    ("method", "sharing"),
    [
        ("ring", Sharing("ring", "zigzag")),
        ("gather_kv", Sharing("gather_kv", "zigzag")),
        ("ulysses", Sharing("ulysses", "contiguous", 4)),
        ("usp2", Sharing("usp", "zigzag", 2)),
    ],
)
def test_bytes_are_those_each_rank_records(method: str, sharing: Sharing) -> None:
    pieces = (Piece(0, 0, 1024, 0, (1, 2, 3, 4), method), Piece(1, 0, 4096, 0, (1, 2, 3, 4), method))
    batch = BatchPlan("by hand", (1024, 4096), 6, 4096, pieces)
    given_terms = terms(6)
    each = [by_hand(length, (1, 2, 3, 4), sharing, node=2) for length in (1024, 4096)]
    for rank, found in enumerate(sent(batch, given_terms)):
        assert list(found) == [sum(one.get(rank, [0, 0])[link] for one in each) for link in (0, 1)]
    most = talk(batch, given_terms)
    assert most.between > 0 and most.inside == max(inside for inside, _ in sent(batch, given_terms))


def test_bytes_of_chunks_and_of_remaps() -> None:
    alone = replace(PLACED, pieces=PLACED.pieces[5:], moves=())
    first, both = (sent(replace(alone, pieces=alone.pieces[:n]), terms())[0][0] for n in (1, 2))
    # The second chunk sends the keys of the first, too; the first is dropped and runs its forward again.
    assert both > 3 * first
    kept = replace(alone, retained=2)
    assert sent(kept, terms())[0][0] == pytest.approx(3 * first)
    token = 64 * SIZES["bfloat16"] * 4
    moved = [sum(one) for one in sent(replace(PLACED, pieces=PLACED.pieces[2:5]), terms())]
    assert moved == [100 * token * (2 * 8 + 12), 0, 100 * token * (2 * 12 + 8), 0]


def test_why_a_sequence_is_where_it_is() -> None:
    told = explained(PLACED, terms(), 5)
    assert [run.piece.micro_step for run in told.runs] == [1, 2] and [run.twice for run in told.runs] == [True, False]
    assert told.runs[0].moves == PLACED.moves and told.runs[0].offloads == PLACED.offloads
    assert told.chosen.ranks == 2 and told.cheapest.ranks == 1 and told.chosen.area > told.cheapest.area
    shared = explained(PLACED, terms(), 0)
    assert shared.runs[0].others == 2 and shared.runs[0].tokens == 2048
    for option in shared.options:
        known = {
            method: terms().linear * 4096 / option.ranks + terms().shared(4096, option.ranks, method)
            for method, _ in option.seconds
        }
        assert dict(option.seconds) == pytest.approx(known)
    assert not explained(PLACED, terms(capacity=2000), 1).options[0].room
