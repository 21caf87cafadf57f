"""The front door: every form of an argument that plan() and compile() take, and what they say to the others."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fourfold as ff
from fourfold.compiler.api import graph_for, plan_graph
from fourfold.compiler.capture import capture
from fourfold.compiler.models import tiny
from fourfold.hardware import load
from fourfold.hardware.errors import FourfoldError, ModelError, ProfileError, UsageError
from fourfold.ir.answer import Answer
from fourfold.ir.plan import Optimizer, Plan, Precision
from fourfold.ir.serial import to_json

WORK = ff.Workload.fixed(length=64, sequences=4)


def model(**sizes: int) -> nn.Module:
    with torch.device("meta"):
        return tiny("llama-8b")(**sizes)


@cache
def planned() -> Answer:
    """A plan for one rank, so that this process alone can run it."""
    return ff.plan(model(), WORK, hardware="cpu-gloo-2@1", precision=Precision.fp32)


def test_a_module_and_its_graph_have_the_same_plan() -> None:
    machine = load("cpu-gloo-2@1")
    graph = plan_graph(capture(model(), torch.float32), WORK, machine=machine, precision=Precision.fp32)
    assert (graph.plan, graph.estimate) == (planned().plan, planned().estimate)


@pytest.mark.parametrize("form", (str, Path, lambda file: load(str(file))))
def test_forms_of_hardware(form: Callable[[Path], Any], tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('schema = "fourfold.hardware/1"\nkind = "node"\nname = "mine"\nextends = "dgx-h200"\n')
    found = ff.plan(model(), WORK, hardware=form(file))
    assert found.plan.machine == load(str(file)).snapshot()
    assert found.estimate.ranks == 8


@pytest.mark.parametrize(
    ("given", "kept"),
    (
        ("adamw", Optimizer("adamw", 8.0)),
        (2, Optimizer("custom", 2.0)),
        (Optimizer("mine", 3.5), Optimizer("mine", 3.5)),
    ),
)
def test_forms_of_an_optimizer(given: str | float | Optimizer, kept: Optimizer) -> None:
    found = ff.plan(model(), WORK, hardware="dgx-h200@1", optimizer=given)
    assert found.plan.optimizer == kept
    held = sum(value.numel() for value in model().parameters())
    assert found.estimate.memory["optimizer"] == pytest.approx((kept.state * held,) * 2, rel=0.15)


@pytest.mark.parametrize("precision", (Precision.bf16, Precision.fp32))
def test_the_model_is_captured_in_the_precision_of_the_plan(precision: Precision) -> None:
    plan = ff.plan(model(), WORK, hardware="dgx-h200@1", precision=precision).plan
    assert plan.precision == precision
    assert {value.dtype for _, value in plan.graph.parameters()} == {precision.compute}


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    (
        ({"pins": {"tpp": 2}}, UsageError, "pin 'tpp' matches no op; pin one of dp, tp, "),
        ({"pins": {"tp": "two"}}, UsageError, "pin tp=two: give a whole number of at least 1"),
        ({"pins": {"tp": 3}}, UsageError, "tp=3 cannot cut label h of "),
        ({"pins": {"tp": 2, "*.gate": "q"}}, UsageError, "has no label 'q' to cut; it has "),
        ({"hardware": "dgx-h2000"}, ProfileError, "HW"),
        ({"hardware": "dgx-h200@two"}, ProfileError, "HW113 'dgx-h200@two': 'two' is not a number of devices"),
        ({"optimizer": "adamww"}, UsageError, "optimizer 'adamww' is not known; give one of "),
    ),
)
def test_what_cannot_be_is_said(wrong: dict[str, Any], error: type[FourfoldError], says: str) -> None:
    with pytest.raises(error) as found:
        ff.plan(model(), WORK, **{"hardware": "dgx-h200@6", **wrong})
    assert says in str(found.value)


@pytest.mark.parametrize("form", (lambda a, p: a, lambda a, p: a.plan, lambda a, p: p, lambda a, p: str(p)))
def test_compile_takes_an_answer_a_plan_and_a_file(form: Callable[[Answer, Path], Any], tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    planned().plan.save(path)
    program = ff.compile(model(), form(planned(), path))
    program.init(seed=0)
    batch = [torch.arange(n) % 256 for n in (64, 17)]
    assert program.step(batch) == pytest.approx(5.5, abs=1.0)  # ln 256: nothing is learned yet


@pytest.mark.parametrize(
    ("at", "value"),
    (
        (("graph",), None),
        (("graph", "blocks"), []),
        (("graph", "calls", 0, "block"), None),
        (("graph", "blocks", "first", "inputs"), {}),
        (("mesh",), {"tp": "two"}),
        (("workload", "lengths"), []),
        (("recompute",), [[]]),
    ),
)
def test_a_damaged_plan_is_refused_in_one_line(at: tuple[str | int, ...], value: object, tmp_path: Path) -> None:
    data = json.loads(to_json(planned().plan))
    within = data
    for key in at[:-1]:
        within = within[key]
    within[at[-1]] = value
    (tmp_path / "plan.json").write_text(json.dumps(data))
    with pytest.raises(UsageError, match=r"(?i)plan") as found:
        ff.compile(model(), tmp_path / "plan.json")
    assert "\n" not in str(found.value)


def test_compile_without_a_plan_needs_what_to_plan_for() -> None:
    with pytest.raises(UsageError, match="needs a plan, or a workload and a hardware name"):
        ff.compile(model())


@pytest.mark.parametrize("sizes", ({"width": 64}, {"rope_base": 10_000}))
def test_a_plan_of_another_model_is_refused(sizes: dict[str, int]) -> None:
    plan: Plan = planned().plan
    assert graph_for(model(), plan).fingerprint == plan.graph.fingerprint
    with pytest.raises(ModelError, match="the plan is for another "):
        ff.compile(model(**sizes), plan)
