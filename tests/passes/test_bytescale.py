"""bytescale: ranks are in balance on shipped lists, and the host's memory takes the place of ranks where it is free."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fourfold.compiler.cli.asking import lengths_file
from fourfold.hardware import load
from fourfold.ir.batch_rules import Bounds, complaints
from fourfold.ir.workload import Workload
from fourfold.passes.batch.bytescale import by_class, bytescale, evenly, fewest
from fourfold.passes.batch.placing.gangs import least_loaded
from fourfold.passes.batch.placing.hosting import share
from fourfold.passes.batch.timing.terms import Layer, Terms
from fourfold.passes.batch.timing.timing import timed
from fourfold.passes.sequence.tables import Heads


class Computing(Terms):
    """Compute alone, in units of a token's linear work: s + s^2 / 50,000, however many ranks share it."""

    def alone(self, length: int) -> float:
        return length * length / 50_000

    def shared(self, length: int, ranks: int, method: str) -> float:
        return self.alone(length) / ranks

    def waits(self, length: int, ranks: int, method: str) -> float:
        return 0.0


class Costly(Computing):
    """More ranks cost more."""

    def shared(self, length: int, ranks: int, method: str) -> float:
        return self.alone(length) / ranks * (1 + 0.05 * ranks)


def terms(
    ranks: int = 64, capacity: int = 8192, spare: float = 0.0, kind: type[Terms] = Computing, **more: float
) -> Terms:
    """A pool of one linear unit a token."""
    layer, bounds = Layer(Heads(8, 2, 64, "bfloat16", causal=True), 1, 1.0), Bounds(ranks, capacity, 1, 8, spare=spare)
    return kind(load("dgx-h200:8"), bounds, 1, 8, 0.0, 1.0, 0.0, (layer,), "float32", **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ("wikipedia", "prolong", "pretrain"))
def test_ranks_are_in_balance(name: str) -> None:
    workload = Workload.sample(lengths_file(name), tokens_per_step=8 * 64 * 8192)
    lengths = [length for length, count in workload.lengths for _ in range(count)]
    batch = bytescale(lengths, terms())
    assert complaints(batch, terms().bounds) == ()
    assert timed(batch, terms()).gap < 0.01
    assert {len(piece.ranks) for piece in batch.pieces} >= {1, 2, 3}


def test_the_host_takes_the_place_of_ranks_where_compute_hides_it() -> None:
    fast = terms(16, 1024, 0.9, Costly, forward=0.3, kept=1.0, host=20.0)
    assert [fewest(n, -(-n // 1022), fast) for n in (1100, 4000, 12000)] == [2, 2, 3]
    assert fewest(12000, 12, terms(16, 1024, 0.9, Costly, forward=0.3, kept=1.0, host=0.1)) == 12
    assert fewest(12000, 12, terms(16, 1024, 0.9, forward=0.3, kept=1.0, host=20.0)) == 12
    assert fewest(12000, 12, terms(16, 1024, 0.0, Costly)) == 12
    assert share(2044, fast) == pytest.approx(0.55)


def test_what_goes_to_the_host_is_placed_and_keeps_the_rules() -> None:
    given = terms(16, 1024, 0.9, Costly, forward=0.3, kept=1.0, host=2.0)
    batch = bytescale([12000] * 8 + [500] * 32, given)
    assert batch.offloads and complaints(batch, given.bounds) == ()
    assert max(len(piece.ranks) for piece in batch.pieces) < 12


@pytest.mark.parametrize(("deal", "steps"), ((evenly, 1.3), (by_class, 1.05)))
def test_lines_of_stages_get_micro_steps_alike(deal: Callable[..., dict[int, list[int]]], steps: float) -> None:
    work = {i: float(w) for i, w in enumerate([90] * 10 + [30] * 30 + [10] * 90)}
    given = terms(9)
    dealt = deal(work, least_loaded((), given), given)
    loads = [sum(work[i] for i in mine) for mine in dealt.values()]
    assert len(loads) == 9 and max(loads) <= 1.35 * min(loads)
    kinds = [len({work[i] for i in mine}) for mine in dealt.values()]
    assert (sum(kinds) / 9 < 1.5) == (deal is by_class)
