"""auto: its grid is what `timed` prices, its solver finds what trying all finds, and nothing is faster."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from fourfold.hardware import load
from fourfold.ir.batch import BatchPlan, Piece
from fourfold.ir.batch_rules import Bounds, complaints
from fourfold.passes.batch import POLICIES, SINGLE
from fourfold.passes.batch.auto import _batch, auto, read
from fourfold.passes.batch.grid.grid import Choice, Grid, option, widest
from fourfold.passes.batch.grid.polish import polish
from fourfold.passes.batch.placing.hosting import widths
from fourfold.passes.batch.timing.bounding import bound
from fourfold.passes.batch.timing.terms import Layer, Terms
from fourfold.passes.batch.timing.timing import timed
from fourfold.passes.sequence.tables import Heads

LENGTHS = [64 + 37 * i % 900 for i in range(120)] + [20000, 9000, 6000, 5000]


def terms(ranks: int, capacity: int, zero: int) -> Terms:
    """A small model on a pool of eight-rank nodes."""
    layer = Layer(Heads(8, 2, 64, "bfloat16", causal=True), 4, 1.0)
    return Terms(load("dgx-h200:2"), Bounds(ranks, capacity, zero, 8), 1, 8, 1e-3, 1e-6, 1e-2, (layer,), "float32")


@pytest.mark.parametrize("zero", (1, 3))
def test_a_placement_is_timed_as_its_grid_says_and_found_again(zero: int) -> None:
    given = terms(16, 4096, zero)
    batch = auto(LENGTHS, given)
    assert complaints(batch, given.bounds) == ()
    grid = read(batch, given, bound(LENGTHS, given))
    assert grid is not None
    assert grid.makespan == pytest.approx(timed(batch, given).seconds - given.once, rel=1e-3)
    assert auto(LENGTHS, given) == batch
    assert len({len(piece.ranks) for piece in batch.pieces}) > 1


@pytest.mark.parametrize("zero", (0, 1, 2, 3))
def test_nothing_is_faster_than_auto(zero: int) -> None:
    given = terms(16, 4096, zero)
    mine = timed(POLICIES["auto"](LENGTHS, given), given).seconds
    others = [timed(SINGLE[name](LENGTHS, given), given).seconds for name in SINGLE if name != "pack"]
    assert mine < min(others)
    assert mine <= timed(auto(LENGTHS, given, gap=0.5), given).seconds


@pytest.mark.parametrize("zero", (1, 3))
def test_a_core_is_solved_as_by_trying_all(zero: int) -> None:
    lengths, given = (700, 610, 520, 430, 340, 250, 160), terms(3, 4096, zero)
    grid = Grid(Choice(lengths, given, 1.0), 1)
    for i, n in enumerate(lengths):
        grid.place(i, 0, i if i < 3 else 0, option(n, 1, given))
    work = [given.task(n, 1) for n in lengths]
    best = min(
        max(given.fixed + sum(w for w, r in zip(work, where, strict=True) if r == rank) for rank in range(3))
        for where in product(range(3), repeat=len(lengths))
        if set(where) == {0, 1, 2}
    )
    polish(grid, goal=0.0)
    assert grid.makespan == pytest.approx(best, rel=2e-3)
    assert sorted(grid.first.tolist()) != [0] * 7


@pytest.mark.parametrize("zero", (1, 3))
def test_wider_micro_steps_leave_memory_for_what_lives_inside_a_block(zero: int) -> None:
    bounds = Bounds(8, 2048, zero, 8, state=0.1, spare=0.75)
    layer = Layer(Heads(8, 2, 64, "bfloat16", causal=True), 4, 1.0)
    given = Terms(load("dgx-h200:1"), bounds, 1, 8, 1e-3, 1e-6, 1e-2, (layer,), "float32")
    given = replace(given, forward=0.3, kept=1e4, host=5e10)
    lengths = [300 + 37 * i % 900 for i in range(60)] + [9000, 6000]
    batch = auto(lengths, given)
    assert batch.offloads and complaints(batch, bounds) == ()
    inside = 1.0 - bounds.spare
    for one in batch.offloads:
        held = batch.held[one.rank, one.micro_step]
        assert held <= max(widths(given))
        assert (1.0 - one.share) * held + inside * held == pytest.approx((1.0 + inside) * 2048, abs=4)
    kept = timed(auto(lengths, replace(given, bounds=replace(bounds, spare=0.0))), given)
    assert timed(batch, given).seconds < kept.seconds


def test_the_host_holds_no_more_than_its_memory() -> None:
    given = terms(16, 4096, 1)
    large = replace(given, bounds=replace(given.bounds, spare=0.9), forward=0.3, kept=1e7, host=5e12)
    node = large.machine.groups[0].node
    assert max(widths(large)) - 4096 == pytest.approx(0.5 * node.host_memory / node.devices / 1e7, abs=1)
    assert widths(given) == ()


def test_the_largest_of_neighbours_by_doubling_is_that_of_windows() -> None:
    values = np.random.default_rng(0).random((3, 20))
    for n in range(1, 21):
        windows = np.lib.stride_tricks.sliding_window_view(values, n, axis=1).max(axis=2)
        assert np.array_equal(widest(values, n), windows)


@pytest.mark.parametrize(("first", "method"), [(0, "usp4"), (2, "ring")])
def test_only_groups_that_begin_a_node_exchange_heads_beyond_it(first: int, method: str) -> None:
    """Twelve ranks of two nodes: from the third rank on, groups of four would lie in both."""
    given = terms(16, 4096, 1)
    ring = Piece(0, 0, 40000, 0, tuple(range(first, first + 12)), "ring")
    grid = read(BatchPlan("by hand", (40000,), 16, 4096, (ring,)), given, 1.0)
    assert grid is not None
    assert given.fastest(40000, 12)[1] == "usp4"
    assert _batch(grid, given).pieces == (replace(ring, method=method),)


def test_where_nothing_is_kept_no_width_is_tried() -> None:
    given = terms(16, 4096, 1)
    bounds = replace(given.bounds, spare=0.5)
    assert widths(replace(given, bounds=bounds, kept=0.0, host=5e10)) == ()
    assert widths(replace(given, bounds=bounds, kept=1e4, host=5e10)) != ()
