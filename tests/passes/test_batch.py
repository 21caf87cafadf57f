"""Batch plans: whatever the lengths and the pool, each policy's placement keeps every rule, and damage is found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from fourfold.hardware import load
from fourfold.hardware.errors import InfeasibleError, UsageError
from fourfold.ir.batch import BatchPlan, Move, Offload, Piece
from fourfold.ir.batch_rules import Bounds, complaints
from fourfold.passes.batch import POLICIES
from fourfold.passes.batch.auto import Policy, auto
from fourfold.passes.batch.showing.compare import compared
from fourfold.passes.batch.static_cp import static_cp
from fourfold.passes.batch.timing.bounding import bound
from fourfold.passes.batch.timing.terms import Layer, Terms
from fourfold.passes.batch.timing.timing import timed
from fourfold.passes.sequence.tables import Heads

LENGTHS = st.one_of(
    st.lists(st.integers(1, 300), min_size=1, max_size=40),
    st.lists(st.sampled_from((1, 2, 7, 128, 1000, 5000)), min_size=1, max_size=12),
    st.builds(lambda n, long: [1 + i % 50 for i in range(n)] + [long], st.integers(0, 400), st.integers(1, 20000)),
)


@cache
def terms(ranks: int, capacity: int, zero: int) -> Terms:
    """A small model on a pool of eight-rank nodes, of as many ranks as there are where nodes make that up."""
    machine = load(f"dgx-h200@{ranks}" if ranks <= 8 else f"dgx-h200:{-(-ranks // 8)}")
    layer = Layer(Heads(8, 2, 64, "bfloat16", causal=True), 4, 1.0)
    bounds = Bounds(ranks, capacity, zero, 8, state=0.1, spare=0.5)
    host = {"forward": 0.3, "kept": 1e4, "host": 5e10}
    return Terms(machine, bounds, 1, min(ranks, 8), 1e-3, 1e-6, 1e-2, (layer,), "float32", **host)


QUICK = {**POLICIES, "auto": partial(auto, starts=(static_cp,), gap=1.0)}
"""The same policies, where auto starts from one and is soon content."""


def holds(
    lengths: Sequence[int], ranks: int, capacity: int, zero: int, policies: Mapping[str, Policy] = POLICIES
) -> None:
    """Every policy places the batch by the rules, not below the bound, or names the sequence that does not fit."""
    given_terms, bounds = terms(ranks, capacity, zero), {}
    for name, policy in policies.items():
        try:
            batch = policy(lengths, given_terms)
        except InfeasibleError as error:
            longest = max(lengths)
            assert f"{longest:,} tokens" in str(error) and "a capacity of" in str(error)
            # Chunks stay on one rank: it may lack room for a sequence's keys.
            widest = {"pack": 1, "chunkflow": 1, "flexsp": 2 ** (ranks.bit_length() - 1)}.get(name, ranks)
            assert longest > (capacity if widest == 1 else widest * max(0, capacity - 2)), error
            continue
        assert complaints(batch, given_terms.bounds) == ()
        assert batch.policy == name
        timing = timed(batch, given_terms)
        # One bound holds for all that need no more than the room of ranks, and one for all others.
        kind = max(batch.held.values()) > batch.capacity
        least = bounds[kind] if kind in bounds else bounds.setdefault(kind, timing.bound)
        assert timing.seconds >= least * (1 - 1e-9)
        assert least >= given_terms.once + sum(lengths) * given_terms.linear / ranks


@settings(max_examples=40, deadline=None)
@given(LENGTHS, st.sampled_from((1, 2, 3, 4, 8, 16)), st.sampled_from((64, 512, 8192)), st.sampled_from((1, 3)))
def test_every_policy_keeps_the_rules(lengths: list[int], ranks: int, capacity: int, zero: int) -> None:
    holds(lengths, ranks, capacity, zero)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", range(5))
def test_every_policy_keeps_the_rules_on_any_pool(part: int) -> None:
    """Ten thousand cases in five parts, that processes share: the same in every run."""

    @seed(part)
    @settings(max_examples=2_000, deadline=None, database=None)
    @given(LENGTHS, st.integers(1, 64), st.sampled_from((16, 64, 512, 8192)), st.sampled_from((0, 1, 2, 3)))
    def check(lengths: list[int], ranks: int, capacity: int, zero: int) -> None:
        holds(lengths, ranks, capacity, zero, QUICK)

    check()


PLACED = BatchPlan(
    "by hand",
    (100, 60, 40),
    4,
    64,
    (
        Piece(0, 0, 100, 0, (0, 1), "ring"),
        Piece(1, 0, 60, 0, (2,)),
        Piece(2, 0, 20, 0, (3,)),
        Piece(2, 20, 40, 1, (3,)),
    ),
)
BOUNDS = Bounds(4, 64, 1, 8, spare=0.5)


def changed(at: int, **fields: object) -> Callable[[BatchPlan], BatchPlan]:
    """The placement with one piece changed."""
    return lambda plan: replace(
        plan,
        pieces=tuple(replace(p, **fields) if i == at else p for i, p in enumerate(plan.pieces)),  # type: ignore[arg-type]
    )


def moving(*moves: Move) -> Callable[[BatchPlan], BatchPlan]:
    """The placement with a remap."""
    return lambda plan: replace(plan, moves=moves)


@pytest.mark.parametrize(
    ("damage", "says"),
    (
        (lambda plan: replace(plan, pieces=plan.pieces[1:]), "sequence 0 of 100 tokens is computed as nowhere"),
        (changed(0, stop=99), "sequence 0 of 100 tokens is computed as 0[0:99]"),
        (changed(3, start=19), "sequence 2 of 40 tokens is computed as 2[0:20] 2[19:40]"),
        (changed(1, sequence=3), "3[0:60] is of no sequence: there are 3"),
        (changed(1, ranks=(4,)), "1[0:60] lies on ranks (4,) of a pool of 4"),
        (changed(0, ranks=(1, 0)), "0[0:100] lies on ranks (1, 0)"),
        (changed(1, ranks=(3,)), "rank 3 holds 80 tokens in micro-step 0, and has room for 64"),
        (changed(3, micro_step=0), "2[0:20] is in micro-step 0 on ranks 3 and 2[20:40], which needs its keys"),
        (changed(3, ranks=(2,)), "2[20:40], which needs its keys, in micro-step 1 on ranks 2"),
        (changed(0, method="whole"), "ranks 0-1 run 'whole' in micro-step 0"),
        (changed(1, method="ring"), "ranks 2 run 'ring' in micro-step 0"),
        (changed(0, method="usp3"), "usp3 on 2 ranks in micro-step 0: they are no groups of 3 that exchange heads"),
        (changed(0, method="usp"), "usp on 2 ranks in micro-step 0: how many of them exchange heads is not said"),
        (changed(0, method="usp1"), "usp1 on 2 ranks in micro-step 0: how many of them exchange heads is not said"),
        *(
            (changed(0, method=name), f"ranks 0-1 run {name!r} in micro-step 0")
            for name in ("", "usp0", "usp02", "usp" + 5000 * "9", "ring2", "ulysses2", "gather_kv2", None, 3)
        ),
        (moving(Move(0, 2, 3, 61)), "rank 2 moves 61 of 60 tokens in 0"),
        (moving(Move(1, 3, 2, 5)), "rank 2 runs nothing in it"),
        (moving(Move(0, 3, 3, 5)), "from one rank of the pool to another"),
        (moving(Move(0, 2, 3, 5), Move(0, 3, 0, 5)), "rank 3 gives and takes tokens in micro-step 0"),
        (moving(Move(0, 2, 3, 45)), "rank 3 holds 65 tokens in micro-step 0"),
        (lambda plan: replace(plan, offloads=(Offload(0, 2, 0.6),)), "60% of micro-step 0 of rank 2 go to the host"),
        (lambda plan: replace(plan, retained=0), "0 chunks are kept"),
        (lambda plan: replace(plan, capacity=65), "it is for 4 ranks of 65, not for 4 of 64"),
    ),
)
def test_damage_is_found(damage: Callable[[BatchPlan], BatchPlan], says: str) -> None:
    assert complaints(PLACED, BOUNDS) == ()
    assert says in "; ".join(complaints(damage(PLACED), BOUNDS))


def test_heads_that_are_exchanged_must_be_enough() -> None:
    exchanged = changed(0, method="ulysses")(PLACED)
    assert complaints(exchanged, BOUNDS) == ()
    assert "there are 1 heads to exchange" in complaints(exchanged, replace(BOUNDS, heads=1))[0]


def test_a_placement_is_text_and_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "batch.json"
    PLACED.save(path)
    assert BatchPlan.read(path.read_text()) == PLACED
    assert str(PLACED).splitlines() == [
        "by hand: 3 sequences, 200 tokens on 4 ranks of 64",
        "0  0-1  ring  100: 0[0:100]",
        "0  2  whole  60: 1[0:60]",
        "0  3  whole  20: 2[0:20]",
        "1  3  whole  20: 2[20:40]",
    ]
    for text in ("{", "[]", '{"schema": "fourfold.batch/9"}', '{"schema": "fourfold.batch/1", "ranks": 4}'):
        with pytest.raises(UsageError, match="is not a batch plan"):
            BatchPlan.read(text)


@pytest.mark.parametrize("zero", (1, 3))
def test_nothing_is_slower_than_the_policies_it_may_follow(zero: int) -> None:
    lengths = [64 + 37 * i % 900 for i in range(200)] + [20000, 9000, 6000]
    given_terms = terms(16, 4096, zero)
    found = compared(lengths, given_terms, tuple(POLICIES), watch=lambda name: None)
    assert found[0].policy == "auto" and found[0].timing is not None
    assert found[-1].policy == "pack" and "20,000 tokens" in found[-1].refused
    assert found[0].timing.seconds >= bound(lengths, given_terms)
    with pytest.raises(UsageError, match="policy 'best' is not known; give one of pack"):
        compared(lengths, given_terms, ("best",), watch=lambda name: None)
