"""Models never seen before, cut over two tensor ranks, equal the plain module to the last gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import planned
import pytest
import torch
from torch import nn

from fourfold.compiler.verify import verify
from fourfold.ir.mesh import Mesh
from fourfold.ir.plan import Layout

QUICK = ("qk-norm", "conv1d")
CASES = (
    *QUICK,
    "post-norm",
    "parallel",
    "odd-widths",
    "multi-query",
    "repeated-heads",
    "expanded-heads",
    "interleaved-rotary",
    "rotary-tables",
    "einsum",
    "qkv-permute",
    "qkv-by-head-chunk",
    "torch-attention",
    "gate-up",
    "experts",
    "hand-norm",
    "no-grad",
    "unknown-ops",
    "tied",
    "scaled-logits",
    "position-slice-batch",
    "position-offset",
    "sequential",
    "called-thrice",
    "tied-across",
    "returns-dict",
    "value-residual",
    "frozen",
)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in CASES]
)
def test_two_tensor_ranks_equal_one(name: str, models: dict[str, Callable[[], nn.Module]]) -> None:
    torch.manual_seed(0)
    model = models[name]()
    plan = planned.plan_for(model, Mesh(1, 2), zero=3, tokens=planned.MANY)
    assert any(layout.cuts for layout in plan.layouts.values())
    report = verify(model, plan, dtype="float64", steps=1)
    assert report.passed, str(report)


@pytest.mark.parametrize("name", ["one-block", "tied"])
def test_a_tied_weight_is_read_whole_by_one_and_cut_by_the_other(
    name: str, models: dict[str, Callable[[], nn.Module]]
) -> None:
    """The gradient is whole on each rank where a whole op reads the weight, partial sums where a cut one does."""
    torch.manual_seed(0)
    model = models[name]()
    plan = planned.plan_for(model, Mesh(1, 2), zero=0)
    whole = {block: Layout() for block in plan.layouts}
    last = list(plan.layouts)[-1]
    layouts = {**whole, last: Layout({"loss:0": "t"}, {})}
    report = verify(model, replace(plan, layouts=layouts), dtype="float64", steps=1)
    failed = [check.name for check in report.failures if "uncut" not in check.name]
    assert not failed, str(report)
