"""The global norm of sharded and cut gradients is that of the plain module, by one collective."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from fourfold.backends.communication.processes import run
from fourfold.backends.communication.traffic import Traffic


@pytest.mark.parametrize(
    ("dp", "tp", "zero", "kind"), [(1, 1, 0, "gpt"), (2, 1, 0, "llama"), (3, 1, 3, "gpt"), (2, 2, 2, "llama")]
)
def test_the_norm_is_that_of_the_whole_gradient(tiny: Any, dp: int, tp: int, zero: int, kind: str) -> None:
    case = tiny.case(getattr(tiny, kind), dp=dp, tp=tp, zero=zero)
    case = replace(case, plan=replace(case.plan, capacity=24))

    def work(rank: int) -> tuple[float, float, float, int]:
        program = case.program()
        program.init(seed=2)
        program.step(tiny.batch(0))
        wholes = [program._whole(n, p.grad) for n, p in program.named_parameters() if p.grad is not None]
        want = math.sqrt(sum(float(g.double().square().sum()) for g in wholes))
        with Traffic() as seen:
            norm = program.clip_grad_norm_(want / 2)
        after = [program._whole(n, p.grad) for n, p in program.named_parameters() if p.grad is not None]
        left = math.sqrt(sum(float(g.double().square().sum()) for g in after))
        return want, norm, left, sum(seen.seen.values())

    for want, norm, left, collectives in run(work, dp * tp, timeout=120):
        assert norm == pytest.approx(want, rel=1e-12)
        assert left == pytest.approx(want / 2, rel=1e-5)
        assert collectives == 1


def test_small_gradients_are_left_alone_and_bad_ones_show(tiny: Any) -> None:
    case = tiny.case(tiny.llama, dp=2)

    def work(rank: int) -> tuple[bool, float, float]:
        program = case.program()
        program.init(seed=2)
        empty = program.clip_grad_norm_(1.0)
        program.step(tiny.batch(0))
        before = [p.grad.to_local().clone() for p in program.parameters()]  # type: ignore[union-attr]
        program.clip_grad_norm_(1e6)
        same = all(torch.equal(a, p.grad.to_local()) for a, p in zip(before, program.parameters(), strict=True))  # type: ignore[union-attr]
        if rank == 1:
            next(iter(program.parameters())).grad.to_local().fill_(math.nan)  # type: ignore[union-attr]
        return same, empty, program.clip_grad_norm_(1.0)

    for same, empty, norm in run(work, 2):
        assert same and empty == 0.0 and math.isnan(norm)
