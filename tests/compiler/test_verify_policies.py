"""Whatever policy places the batch, loss and every gradient are those of the plain module: ranks, stages, ZeRO."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import planned
import pytest
from random_placements import AtRandom, given
from torch import Tensor, nn

from fourfold.backends.attention.remap import Remap
from fourfold.backends.step.step import Step
from fourfold.compiler.verify import Report, verify
from fourfold.compiler.verify.rank import Job
from fourfold.hardware.errors import RunError, UsageError
from fourfold.ir.batch import BatchPlan, Move, Piece
from fourfold.ir.mesh import Mesh
from fourfold.ir.sequence.method import Carried
from fourfold.passes.batch import POLICIES, Policy
from fourfold.passes.batch.timing.terms import Terms

FAMILIES: dict[str, Callable[[], nn.Module]] = {"llama": planned.llama, "gpt": planned.gpt}
MESHES = {
    "pp2": Mesh(pp=2),
    "dp2": Mesh(2),
    "dp3": Mesh(3),
    "dp4": Mesh(4),
    "dp2xpp2": Mesh(2, pp=2),
    "dp2xtp2": Mesh(2, 2),
    "dp2xsp2": Mesh(2, sp=2),
}
CHOSEN = (
    "llama dp2 1 none auto float64",
    "gpt dp3 1 regions flexsp float32",
    "gpt dp4 3 none bytescale float32",
    "llama dp2xtp2 1 regions chunkflow float64",
    "llama dp2 2 full homogeneous float64",
    "gpt dp2 0 full static_cp float32",
    "gpt pp2 0 regions pack float32",
)
"""Family, mesh, ZeRO, recompute, policy, dtype; the rest of the product is slow."""


def verified(case: str, policy: str | Policy = "", **rest: Any) -> Report:
    family, mesh, zero, recompute, name, dtype = case.split()
    degrees, model = MESHES[mesh], FAMILIES[family]()
    bounds = (1,) if degrees.pp > 1 else ()
    plan = planned.plan_for(model, degrees, zero=int(zero), recompute=recompute, bounds=bounds, **rest)
    return verify(model, plan, dtype=dtype, steps=1, policy=policy or name, timeout=240)


def loss_of(report: Report) -> float:
    """Of the batch, as the program found it."""
    (detail,) = (c.detail for c in report.checks if (c.kind, c.name) == ("loss", "of the batch"))
    return float(detail.partition(",")[0])


@pytest.mark.parametrize("case", CHOSEN)
def test_a_policy_equals_the_plain_module(case: str) -> None:
    report = verified(case)
    assert report.passed, str(report)
    assert report.placed is not None
    assert report.placed.shared + report.placed.chunks > 0 or "cannot place" in report.notes[0]


@pytest.mark.slow
@pytest.mark.parametrize("zero", [1, 3])
@pytest.mark.parametrize("mesh", ["dp2", "dp3", "dp4", "dp2xpp2"])
def test_every_policy_equals_the_plain_module_and_the_others(mesh: str, zero: int) -> None:
    losses = {}
    for at, name in enumerate(POLICIES):
        family, recompute = ("gpt", "llama")[zero == 1], ("none", "regions", "full")[at % 3]
        report = verified(f"{family} {mesh} {zero} {recompute} {name} float32")
        assert report.passed, str(report)
        assert report.placed is not None and report.placed.policy == name
        losses[name] = loss_of(report)
    assert max(losses.values()) - min(losses.values()) <= 1e-5 * losses["auto"], losses


def test_what_a_policy_refuses_is_said() -> None:
    """No rank has room for the longest document, until one has."""
    text = str(verified("llama dp2 1 none pack float32"))
    assert "placed by pack: 0 shared teams, 0 chunks, 0 moves" in text
    assert "pack cannot place sequence 0 of 37 tokens" in text and "verified with 37" in text
    assert "up to 2 micro-steps a rank" in text


def evened(lengths: Sequence[int], terms: Terms) -> BatchPlan:
    """`auto`, and in every micro-step tokens of half of the ranks are run by the rest, as many as those have room."""
    batch = POLICIES["auto"](lengths, terms)
    moves: list[Move] = []
    for step in range(batch.micro_steps):
        here = sorted((r for r in range(batch.ranks) if (r, step) in batch.held), key=lambda r: -batch.held[r, step])
        moves += given(batch, step, here, lambda left: left // 2)
    return replace(batch, moves=tuple(moves))


@pytest.mark.parametrize(
    "case",
    [
        "llama dp3 1 none evened float64",
        "gpt dp2xpp2 1 regions evened float32",
        pytest.param("llama dp4 3 full evened float64", marks=pytest.mark.slow),
        pytest.param("gpt dp2xtp2 0 regions evened float64", marks=pytest.mark.slow),
        pytest.param("gpt dp2xsp2 0 none evened float32", marks=pytest.mark.slow),
    ],
)
def test_moved_tokens_equal_the_plain_module(case: str) -> None:
    report = verified(case, evened)
    assert report.passed, str(report)
    assert report.placed is not None and report.placed.moves > 2


SPLIT = ("zero_bubble", "gpipe", "1f1b")


@pytest.mark.parametrize(
    "schedule", [pytest.param(one, marks=() if one == "zero_bubble" else pytest.mark.slow) for one in SPLIT]
)
def test_chunks_go_through_stages_by_every_schedule(schedule: str) -> None:
    """A gradient is received before the forward that was dropped is run again."""
    report = verified("gpt dp2xpp2 1 none chunkflow float64", schedule=schedule)
    assert report.passed, str(report)
    assert report.placed is not None and report.placed.chunks > 2


RANDOM, FAST = ("dp2", "dp3", "dp4", "dp2xpp2", "dp2xtp2"), (3,)


def at_random(seed: int) -> Report:
    zero, recompute = seed % 4, ("none", "regions", "full")[seed % 3]
    family, dtype = ("llama", "gpt")[seed // 2 % 2], ("float64", "float32")[seed % 2]
    return verified(f"{family} {RANDOM[seed % 5]} {zero} {recompute} random {dtype}", AtRandom(seed))


@pytest.mark.parametrize("seed", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in range(20)])
def test_placements_at_random_equal_the_plain_module(seed: int) -> None:
    report = at_random(seed)
    assert report.passed, str(report)


def lone(lengths: Sequence[int], terms: Terms) -> BatchPlan:
    """`auto`, but for the document of one token: two ranks share it, and the one that holds nothing of it runs it."""
    batch = POLICIES["auto"](lengths, terms)
    alone, last = lengths.index(1), batch.micro_steps
    pieces = (*(p for p in batch.pieces if p.sequence != alone), Piece(alone, 0, 1, last, (0, 1), "ring"))
    found = replace(batch, pieces=pieces)
    (source,) = (rank for rank in (0, 1) if found.held[rank, last])
    return replace(found, moves=(Move(last, source, 1 - source, 1),))


@pytest.mark.parametrize("zero", [pytest.param(0, marks=pytest.mark.slow), 3])
def test_tokens_go_to_a_rank_that_attends_to_none(zero: int) -> None:
    report = verified(f"llama dp2 {zero} regions lone float64", lone)
    assert report.passed, str(report)
    assert report.placed is not None and report.placed.moves == 1


def test_gradients_that_are_not_reduced_at_the_end_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Step, "_reduce", lambda *_: None)
    report = verified("llama dp2 1 none auto float64")
    assert {"gradient", "collectives", "norm"} <= {check.kind for check in report.failures}


def test_tokens_that_come_back_in_another_order_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Remap.inward
    monkeypatch.setattr(Remap, "inward", lambda *given: tuple(x.flip(0) for x in right(*given)))
    report = verified("llama dp2 1 none evened float64", evened)
    assert "gradient" in {check.kind for check in report.failures}


def test_chunks_that_forget_those_before_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and values are there, and the gradients that later chunks have for them are dropped."""
    right = Carried.summed

    def forgetful(self: Carried, past: int) -> Tensor:
        self.sums = None
        return right(self, past)

    monkeypatch.setattr(Carried, "summed", forgetful)
    report = verified("llama dp2 1 none chunkflow float64")
    assert "gradient" in {check.kind for check in report.failures}


def test_forwards_that_run_twice_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Job, "carried", lambda *_: frozenset())
    report = verified("llama dp2xtp2 1 none chunkflow float64")
    assert {check.kind for check in report.failures} == {"collectives"}


def test_a_policy_that_is_not_known_is_refused() -> None:
    with pytest.raises(UsageError, match="'fastest' is not known; give one of pack"):
        verified("llama dp2 1 none fastest float32")


def test_a_placement_that_breaks_a_rule_is_refused() -> None:
    def twice(lengths: Sequence[int], terms: Terms) -> BatchPlan:
        made = POLICIES["auto"](lengths, terms)
        return replace(made, pieces=(*made.pieces, made.pieces[0]))

    with pytest.raises(RunError, match="breaks a rule: sequence 0 of 37 tokens is computed as"):
        verified("llama dp2 1 none twice float32", twice)
