"""Plans whose axes lie in another order equal the plain module: who talks to whom follows the order."""

from __future__ import annotations

from dataclasses import replace

import planned
import pytest

from fourfold.compiler.verify import verify
from fourfold.ir.mesh import Mesh
from fourfold.ir.plan import Plan, Sharing
from fourfold.ir.serial import to_json
from fourfold.ir.verify import complaints

OUTSIDE = {
    "tp outside dp": Mesh(dp=2, tp=2).ordered(("tp", "dp")),
    "tp outside sp": Mesh(sp=2, tp=2).ordered(("tp", "sp")),
    "pp inside dp": Mesh(pp=2, dp=2).ordered(("dp", "pp")),
    "tp outside pp": Mesh(pp=2, tp=2).ordered(("tp", "pp")),
}


def in_order(name: str) -> Plan:
    mesh, sharing = OUTSIDE[name], Sharing("ring", "zigzag")
    bounds = (2,) if mesh.pp > 1 else ()
    return planned.plan_for(planned.llama(), mesh, zero=1, micro_steps=2, sharing=sharing, capacity=128, bounds=bounds)


@pytest.mark.parametrize(
    "name", ["tp outside dp", *(pytest.param(name, marks=pytest.mark.slow) for name in list(OUTSIDE)[1:])]
)
def test_an_order_changes_who_talks_to_whom_and_nothing_else(name: str) -> None:
    plan = in_order(name)
    assert Plan.read(to_json(plan)).mesh == plan.mesh == OUTSIDE[name]
    report = verify(planned.llama(), plan, dtype="float64", steps=1)
    assert report.passed, str(report)


def test_an_order_is_a_permutation_with_data_outside_sequence() -> None:
    plan = planned.plan_for(planned.llama(), Mesh(dp=2, sp=2), sharing=Sharing("ring", "zigzag"), capacity=128)
    assert not any("order" in wrong for wrong in complaints(plan))
    for order in (("pp", "sp", "dp", "tp"), ("pp", "dp", "sp"), ("pp", "dp", "tp", "tp")):
        wrong = complaints(replace(plan, mesh=replace(plan.mesh, order=order)))
        assert any("order names each of pp, dp, sp, tp once, dp before sp" in text for text in wrong)
