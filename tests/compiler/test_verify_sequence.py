"""Plans that share documents over ranks equal the plain module: every method, with data and tensor beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import planned
import pytest
from torch import nn

from fourfold.compiler.verify import Report, verify
from fourfold.ir.mesh import Mesh
from fourfold.ir.plan import Sharing

FAMILIES: dict[str, Callable[[], nn.Module]] = {"llama": planned.llama, "gpt": planned.gpt}
CHOSEN = (
    "llama sp2 ring zigzag 1 3 none float64",
    "llama sp3 gather_kv contiguous 1 2 regions float64",
    "llama sp4 usp zigzag 2 3 regions float32",
    "gpt sp4 ulysses contiguous 4 1 full float32",
    "llama dp2xsp2 ring striped 1 3 full float64",
    "gpt sp2xtp2 gather_kv zigzag 1 0 regions float32",
)
"""Family, mesh, method, layout, ranks that exchange heads, ZeRO, recompute, dtype."""
MESHES = {
    "sp2": Mesh(sp=2),
    "sp3": Mesh(sp=3),
    "sp4": Mesh(sp=4),
    "dp2xsp2": Mesh(dp=2, sp=2),
    "sp2xtp2": Mesh(sp=2, tp=2),
}


def verified(case: str, **options: Any) -> Report:
    family, mesh, method, layout, ulysses, zero, recompute, dtype = case.split()
    model = FAMILIES[family]()
    sharing = Sharing(method, layout, int(ulysses))
    plan = planned.plan_for(
        model, MESHES[mesh], zero=int(zero), recompute=recompute, micro_steps=2, sharing=sharing, capacity=64
    )
    return verify(model, plan, dtype=dtype, **options)


@pytest.mark.parametrize("case", CHOSEN)
def test_a_plan_equals_the_plain_module(case: str) -> None:
    report = verified(case, steps=1)
    assert report.passed, str(report)
