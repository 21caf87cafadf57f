"""Plans in pipeline stages equal the plain module: schedules, ZeRO stages, tied weights, every other axis beside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import planned
import pytest
from torch import nn

from fourfold.compiler.verify import Report, verify
from fourfold.hardware.errors import UsageError
from fourfold.ir.mesh import Mesh
from fourfold.ir.plan import Sharing

FAMILIES: dict[str, Callable[[], nn.Module]] = {"llama": planned.llama, "gpt": planned.gpt}
MESHES = {
    "pp2": Mesh(pp=2),
    "pp3": Mesh(pp=3),
    "pp4": Mesh(pp=4),
    "dp2xpp2": Mesh(dp=2, pp=2),
    "pp2xtp2": Mesh(pp=2, tp=2),
    "pp2xsp2": Mesh(pp=2, sp=2),
}
CHOSEN = (
    "llama pp2 1f1b 2 0 none 3 float64",
    "gpt pp2 gpipe 1 1 full 2 float64",
    "gpt pp3 1f1b 1,2 1 none 4 float32",
    "llama dp2xpp2 1f1b 1 1 regions 3 float64",
    "gpt dp2xpp2 gpipe 2 3 none 2 float32",
    "llama pp2xtp2 1f1b 2 0 none 2 float32",
    "gpt pp2xsp2 1f1b 2 1 regions 2 float32",
    "gpt pp2 zero_bubble 1 1 full 3 float64",
    "llama dp2xpp2 zero_bubble 2 1 regions 3 float64",
    "gpt pp2xtp2 zero_bubble 2 0 none 4 float32",
    "gpt pp4 zero_bubble 1,2,3 1 none 5 float32",
)
"""Family, mesh, schedule, bounds, ZeRO, recompute, micro-steps, dtype."""


def verified(case: str, **options: Any) -> Report:
    family, mesh, schedule, bounds, zero, recompute, micro_steps, dtype = case.split()
    model = FAMILIES[family]()
    plan = planned.plan_for(
        model,
        MESHES[mesh],
        zero=int(zero),
        recompute=recompute,
        micro_steps=int(micro_steps),
        schedule=schedule,
        bounds=tuple(map(int, bounds.split(","))),
        sharing=Sharing("ring", "zigzag"),
    )
    return verify(model, plan, dtype=dtype, **options)


@pytest.mark.parametrize("case", CHOSEN)
def test_a_plan_equals_the_plain_module(case: str) -> None:
    report = verified(case, steps=1)
    assert report.passed, str(report)


MIXED = """
0F0 0F1 0I0 0F2 0B1 0I2 0W2 0W0
1F0 1B0 1F1 1I1 1F2 1I2 1W1 1W2
"""
"""Whole backwards between split ones, a W far from its I and out of turn."""


@pytest.mark.parametrize("family", FAMILIES)
def test_an_order_of_its_own_equals_the_plain_module(family: str) -> None:
    """The text of a solver, or anyone's: tied weights, blocks done again, weights that wait to the end."""
    plan = planned.plan_for(
        FAMILIES[family](), Mesh(pp=2), zero=1, recompute="regions", micro_steps=3, schedule="solved", bounds=(2,)
    )
    report = verify(FAMILIES[family](), replace(plan, order=MIXED.strip()), dtype="float64", steps=2)
    assert report.passed, str(report)


@pytest.mark.parametrize(
    ("degrees", "bounds", "schedule", "ranks", "layout"),
    [
        (Mesh(pp=4), (1, 2, 7), "zero_bubble", 2, "pp2, ZeRO 1, recompute none"),
        pytest.param(Mesh(pp=2), (2, 4, 7), "interleaved-2", 2, "pp2, ZeRO 1, recompute none", marks=pytest.mark.slow),
        pytest.param(Mesh(dp=2, pp=2), (6,), "1f1b", 2, "dp2, ZeRO 1, recompute none", marks=pytest.mark.slow),
    ],
)
def test_stages_on_fewer_ranks_of_a_model_of_fewer_layers(
    degrees: Mesh, bounds: tuple[int, ...], schedule: str, ranks: int, layout: str
) -> None:
    """Eight calls become four, and stages of neighbours one."""
    model = planned.llama(layers=6)
    plan = planned.plan_for(model, degrees, zero=1, bounds=bounds, schedule=schedule, micro_steps=2)
    report = verify(model, plan, dtype="float64", steps=1, ranks=ranks, small=1000)
    assert report.passed, str(report)
    assert report.layout == layout and "2 of 6 blocks" in str(report)


def test_more_stages_than_there_are_blocks_are_refused() -> None:
    model = planned.llama(layers=6)
    plan = planned.plan_for(model, Mesh(pp=5), zero=1, bounds=(1, 2, 4, 6))
    with pytest.raises(UsageError, match="5 stages on 5 ranks and the model to verify 4 blocks: verify a model of"):
        verify(model, plan, small=1000)


@pytest.mark.slow
@pytest.mark.parametrize("recompute", ["none", "regions", "full"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("mesh", "bounds", "zero"), [("pp4", "1,2,3", 0), ("dp2xpp2", "1", 1), ("pp2xtp2", "2", 1)])
def test_a_split_backward_equals_the_plain_module(
    mesh: str, bounds: str, zero: int, family: str, recompute: str
) -> None:
    for dtype in ("float32", "float64"):
        report = verified(f"{family} {mesh} zero_bubble {bounds} {zero} {recompute} 5 {dtype}", steps=1)
        assert report.passed, str(report)


FOUR = {
    "dp2xpp2xtp2": Mesh(dp=2, pp=2, tp=2),
    "dp2xpp2xsp2": Mesh(dp=2, pp=2, sp=2),
    "dp2xsp2xtp2": Mesh(dp=2, sp=2, tp=2),
    "pp2xsp2xtp2": Mesh(pp=2, sp=2, tp=2),
    "dp2xpp2xsp2xtp2": Mesh(dp=2, pp=2, sp=2, tp=2),
}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mesh", FOUR)
def test_three_and_four_axes_at_once(mesh: str, family: str) -> None:
    """8 and 16 processes: loss, every gradient, the clipped steps and the norm, in float32."""
    degrees = FOUR[mesh]
    plan = planned.plan_for(
        FAMILIES[family](),
        degrees,
        zero=1,
        recompute="regions",
        micro_steps=2,
        bounds=(2,) if degrees.pp > 1 else (),
        sharing=Sharing("ring", "zigzag"),
    )
    report = verify(FAMILIES[family](), plan, dtype="float32", steps=1, ranks=degrees.ranks)
    assert report.passed, str(report)
    norm = next(check for check in report.checks if check.kind == "norm")
    assert norm.error <= 1e-5
