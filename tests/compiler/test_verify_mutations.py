"""verify sees what it is there to see: one collective left out, positions off by one, a gradient joined too rarely."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from types import MappingProxyType

import planned
import pytest
import torch
from torch import Tensor, nn

from fourfold.backends.batch import batching
from fourfold.backends.batch.batching import Packed
from fourfold.backends.communication import collectives, processes
from fourfold.backends.communication.collectives import Axis, convert
from fourfold.backends.lowering import lower
from fourfold.backends.lowering.lower import Lowered, Region
from fourfold.backends.stage import engine
from fourfold.compiler.verify import verify
from fourfold.compiler.verify.check import prepared
from fourfold.compiler.verify.expect import lowered
from fourfold.compiler.verify.judge import judged
from fourfold.compiler.verify.plain import reference
from fourfold.compiler.verify.rank import Job, run_rank
from fourfold.ir.conversion import Move
from fourfold.ir.mesh import Mesh

Place = tuple[str, int, int, int]
"""A collective: its block, its step, which conversion of that region, and 1 for forward, 2 for backward."""


def alone(x: Tensor, move: Move, axis: Axis) -> Tensor:
    """A result of the right shape out of this rank's own data, no rank asked."""
    match move.op:
        case "all_gather":
            return torch.cat([x] * axis.size, move.dim)
        case "reduce_scatter":
            return x.chunk(axis.size, move.dim)[axis.rank].clone()
        case "all_to_all":
            return torch.cat([x.chunk(axis.size, move.to)[axis.rank]] * axis.size, move.dim)
    return x.clone()


STANDING_IN = MappingProxyType(
    {f"no {op}": lambda x, m, a: alone(x, replace(m, op=m.op[3:]), a) for op in collectives.MOVES}
)


def conversions(region: Region) -> list[torch.fx.Node]:
    return [fx for fx in region.function.graph.nodes if fx.target is convert]


def places(blocks: dict[str, Lowered]) -> Iterator[Place]:
    for name, block in blocks.items():
        for at, step in enumerate(block.steps):
            for k, fx in enumerate(conversions(step) if isinstance(step, Region) else ()):
                yield from ((name, at, k, way) for way in (1, 2) if not Move(*fx.args[way]).local)


def without(block: Lowered, place: Place) -> Lowered:
    """The block, one of its collectives replaced by a stand-in."""
    _, at, k, way = place
    region = block.steps[at]
    assert isinstance(region, Region)
    fx = conversions(region)[k]
    op, dim, to = fx.args[way]
    fx.args = (*fx.args[:way], (f"no {op}", dim, to), *fx.args[way + 1 :])
    region.function.recompile()
    return block


def changed(change: Callable[[Lowered], Lowered]) -> Callable[..., Lowered]:
    """Lowering, and then `change`."""
    return lambda *args, **kwargs: change(lower.lower(*args, **kwargs))


def job_for(model: nn.Module, tokens: int, folder: object) -> tuple[Job, object]:
    case = prepared(model, planned.plan_for(model, Mesh(1, 2), zero=0, tokens=tokens), dtype="float64")
    path = folder / "reference.pt"  # type: ignore[operator]
    (answer,) = processes.run(
        lambda rank: reference(model, case.batch, path, dtype=torch.float64, steps=0), 1, timeout=120
    )
    return Job(case.model, case.plan, case.graph, case.batch, answer[0], path), answer[1]


@pytest.mark.parametrize(
    ("make", "tokens"),
    [
        (planned.llama, planned.MANY),
        (planned.llama, planned.FEW),
        pytest.param(planned.gpt, planned.MANY, marks=pytest.mark.slow),
        pytest.param(planned.gpt, planned.FEW, marks=pytest.mark.slow),
    ],
    ids=["llama-cut-tokens", "llama-whole-tokens", "gpt-cut-tokens", "gpt-whole-tokens"],
)
def test_no_collective_can_be_left_out(
    make: Callable[[int], nn.Module], tokens: int, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each in turn, by numbers alone: the count of collectives is left out of the verdict."""
    job, passed = job_for(make(1), tokens, tmp_path)
    every = list(places(lowered(job.plan, job.graph)))
    assert len(every) >= 6
    monkeypatch.setattr(collectives, "MOVES", MappingProxyType({**collectives.MOVES, **STANDING_IN}))

    def work(rank: int) -> list[object]:
        found: list[object] = []
        for place in (None, *every):
            engine.lower = changed(
                lambda low, place=place: without(low, place) if place and low.block.name == place[0] else low
            )
            found.append(run_rank(job, rank))
        return found

    runs = list(zip(*processes.run(work, 2, timeout=250), strict=True))
    verdicts = []
    for found in runs:
        checks = judged(job, passed, found, "float64")  # type: ignore[arg-type]
        verdicts.append(all(c.passed for c in checks if c.kind != "collectives"))
    assert verdicts[0], "the program as it is must pass"
    unseen = [place for place, fine in zip(every, verdicts[1:], strict=True) if fine]
    assert not unseen, f"left out, and verify passes: {unseen}"


@pytest.mark.parametrize("missing", ["max", "sum"])
def test_the_loss_of_a_cut_vocabulary_needs_both_its_sums(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = engine.Engine._reduce
    monkeypatch.setattr(
        engine.Engine, "_reduce", lambda self, tensor, how: None if how == missing else real(self, tensor, how)
    )
    model = planned.llama(1)
    plan = planned.plan_for(model, Mesh(1, 2))
    assert plan.layouts["last"].cuts["loss:0"] == "v"
    report = verify(model, plan, dtype="float64", steps=0)
    assert any(check.kind == "loss" for check in report.failures)


def moved(change: Callable[[Tensor], Tensor]) -> Callable[..., Packed]:
    real = batching.filled
    return lambda *args, **kwargs: (lambda p: replace(p, positions=change(p.positions)))(real(*args, **kwargs))


@pytest.mark.parametrize(
    ("make", "change"),
    [(planned.gpt, lambda p: p + 1), (planned.llama, lambda p: p.roll(1))],
    ids=["learned-plus-one", "rotary-rolled"],
)
def test_positions_off_by_one_are_seen(
    make: Callable[[int], nn.Module], change: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rotary positions only tell distances, so all of them plus one is the same model; tokens and positions are not."""
    monkeypatch.setattr(batching, "filled", moved(change))
    model = make(1)
    report = verify(model, planned.plan_for(model, Mesh(2)), dtype="float64", steps=0)
    assert not report.passed
    assert any(check.kind == "loss" for check in report.failures)


def test_a_partial_gradient_that_is_not_joined_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms that read cut tokens: without the sum over tp each rank has a gradient of its own."""
    model = planned.llama(1)
    plan = planned.plan_for(model, Mesh(1, 2), tokens=planned.MANY)
    assert any(block.partial for block in lowered(plan, plan.graph).values())
    monkeypatch.setattr(engine, "lower", changed(lambda low: replace(low, partial=frozenset())))
    report = verify(model, plan, dtype="float64", steps=0)
    assert any(check.kind == "gradient" and "norm" in check.name for check in report.failures)


def test_a_collective_too_many_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    real = collectives.all_reduce
    twice = {"all_reduce": lambda x, move, axis: real(real(x, move, axis) / axis.size, move, axis)}
    monkeypatch.setattr(collectives, "MOVES", MappingProxyType({**collectives.MOVES, **twice}))
    model = planned.llama(1)
    report = verify(model, planned.plan_for(model, Mesh(1, 2)), dtype="float64", steps=0)
    assert {check.kind for check in report.failures} == {"collectives"}
