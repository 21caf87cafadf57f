"""compile() on several ranks without a plan: rank 0 plans for all, and a mistake ends all of them with its name."""

from __future__ import annotations

from typing import Any

import torch

import fourfold as ff
from fourfold.backends.communication.processes import run
from fourfold.compiler.models import tiny
from fourfold.hardware.errors import FourfoldError
from fourfold.ir.serial import to_json

WORK = ff.Workload.fixed(length=16, sequences=8)
HARDWARE = "cpu-gloo@3"


def compiled(rank: int) -> Any:
    """The plan's text and the losses of two steps of this rank."""
    torch.manual_seed(0)
    model = tiny("llama-1b")()
    options = ff.Options(device=torch.device("cpu"))
    program = ff.compile(model, workload=WORK, hardware=HARDWARE, precision=ff.Precision.fp32, options=options)
    program.init(seed=1)
    optimizer = torch.optim.SGD(program.parameters(), lr=0.5)
    losses = []
    for _ in range(2):
        losses.append(program.step([list(range(k, k + 16)) for k in range(8)]))
        optimizer.step()
        optimizer.zero_grad()
    return to_json(program.plan), losses


def refused(rank: int) -> tuple[str, str]:
    try:
        ff.compile(tiny("llama-1b")(), workload=WORK, hardware="no-such-machine")
    except FourfoldError as error:
        return type(error).__name__, str(error)
    return "nothing", ""


def test_all_ranks_run_the_plan_of_rank_0() -> None:
    found = run(compiled, 3, timeout=120)
    assert found[0] == found[1] == found[2]
    first, second = found[0][1]
    assert second < first


def test_what_planning_meets_all_ranks_raise() -> None:
    (kind, text), (other, told) = run(refused, 2, timeout=60)
    assert kind == other == "ProfileError"
    assert "no-such-machine" in text and told == f"rank 0: {text}"
