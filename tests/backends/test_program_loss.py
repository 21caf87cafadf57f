"""A user's own loss through a program: the plain module's loss and gradients under every cut of the vocabulary."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fourfold.backends.communication.processes import run
from fourfold.backends.program import Options, Program


def smoothed(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Label smoothing and a z-loss, over the supervised tokens."""
    kept = labels != -100
    loss = F.cross_entropy(logits, labels, reduction="sum", ignore_index=-100, label_smoothing=0.1)
    return loss + 1e-2 * (logits.logsumexp(-1).square() * kept).sum(), kept.sum()


def plainly(make: Any, batch: list[list[int]]) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of the plain module, document by document."""
    model = make().double()
    sums, counts = [], []
    for document in batch:
        ids = torch.tensor([document])
        labels = torch.cat((ids[0, 1:], torch.tensor([-100])))
        total, count = smoothed(model(ids)[0], labels)
        sums.append(total)
        counts.append(count)
    loss = torch.stack(sums).sum() / torch.stack(counts).sum()
    loss.backward()
    return float(loss), {name: p.grad for name, p in model.named_parameters()}


def work(case: Any, batch: list[list[int]], rank: int) -> tuple[float, float]:
    """The loss, and the largest difference of a gradient from the plain module's."""
    loss, wanted = plainly(case.make, batch)
    program = Program(case.make(), case.plan, case.plan.graph, Options(loss=smoothed))
    program.copy_from(case.make().double())
    found = program.step(batch)
    worst = 0.0
    for name, parameter in program.named_parameters():
        grad = parameter.grad.full_tensor()  # type: ignore[union-attr]
        if name in wanted:
            worst = max(worst, float((grad - wanted[name]).abs().max()))
    return abs(found - loss), worst


@pytest.mark.parametrize(("dp", "tp"), ((1, 1), (2, 1), (1, 2), (2, 2)))
def test_a_users_loss_equals_the_plain_modules(tiny: Any, dp: int, tp: int) -> None:
    case = tiny.case(tiny.llama, dp=dp, tp=tp)
    for loss, grad in run(partial(work, case, tiny.batch(0)), dp * tp, timeout=120):
        assert loss < 1e-10 and grad < 1e-10


def test_dropout_differs_between_ranks_and_repeats_after_a_load(tiny: Any) -> None:
    """The same document twice, on two ranks, meets two masks; the same step of the same seed draws the same ones."""
    case = tiny.case(tiny.dropping, dp=2)
    document = list(range(12))

    def losses(rank: int) -> list[float]:
        program = case.program()
        program.init(seed=3)
        found = [program.evaluate([document]), program.evaluate([document, document])]
        for batch in ([document], [document, document], [document]):
            program.steps_done = 0
            torch.rand(rank)
            found.append(program.step(batch))
        return found

    (still, twice, alone, both, again), _ = run(losses, 2, timeout=120)
    assert abs(still - twice) < 1e-12
    assert alone == again and abs(alone - both) > 1e-6
