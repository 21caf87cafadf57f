"""When nothing fits: a short text that says how much is missing where, and what would help at what price."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache

import pytest
import torch
from tiny_graphs import deeper

from fourfold.compiler.api import plan_graph
from fourfold.compiler.capture import capture
from fourfold.compiler.models import shipped
from fourfold.hardware import Machine, load
from fourfold.hardware.errors import InfeasibleError
from fourfold.ir.answer import Answer, Estimate, Refusal
from fourfold.ir.graph import Graph
from fourfold.ir.plan import Plan
from fourfold.ir.workload import Workload
from fourfold.passes.search.repairs import infeasible

WORK = Workload.fixed(length=8192, sequences=64)
NONE = Estimate(0.0, (), {}, 0.0, 0.0, 0.0, 0, 1)
LINES, WIDTH = 14, 100
PRICED = re.compile(r"  (?P<change>\S.*?)  +(?P<step>[\d.e+-]+) s a step")


@cache
def llama(name: str, layers: int) -> Graph:
    with torch.device("meta"):
        return deeper(capture(shipped(name)(layers=2), torch.bfloat16), layers)


@cache
def refused(spec: str, model: str = "llama-70b", layers: int = 80, **pins: str | int) -> list[str]:
    """The lines of the error."""
    with pytest.raises(InfeasibleError) as found:
        plan_graph(llama(model, layers), WORK, machine=load(spec), pins=pins)
    return str(found.value).splitlines()


def offers(lines: list[str]) -> dict[str, float]:
    """Each repair with its seconds."""
    found = [PRICED.fullmatch(line) for line in lines[lines.index("It fits with one of:") + 1 :]]
    return {one["change"]: float(one["step"]) for one in found if one}


def test_a_model_too_large_for_one_device() -> None:
    lines = refused("dgx-h200@1")
    assert lines[0] == "Llama does not fit dgx-h200@1 (1 rank, 138.9 GiB each):"
    assert re.fullmatch(r"  one rank  [\d.]+ GiB short at best \(8 micro-steps, recompute in 80 calls\)", lines[1])
    assert offers(lines).keys() == {"dgx-h200:2 (16 ranks)"}


def test_a_graph_small_enough_to_look_at_every_plan_of_it() -> None:
    lines = refused("dgx-h200@1", layers=2, recompute="none", micro_steps=1)
    assert re.fullmatch(r"  one rank  [\d.]+ GiB short at best \(1 micro-step, nothing recomputed\)", lines[1]), lines
    assert offers(lines)


@pytest.mark.parametrize(
    ("spec", "pins"),
    (
        ("dgx-h200@1", {}),
        pytest.param("dgx-h100", {}, marks=pytest.mark.slow),
        pytest.param("dgx-h200:3", {"tp": 1, "zero": 0, "micro_steps": 1, "recompute": "none"}, marks=pytest.mark.slow),
    ),
)
def test_the_text_is_short_and_prices_its_repairs(spec: str, pins: dict[str, str | int]) -> None:
    lines = refused(spec, **pins)
    assert len(lines) <= LINES and max(map(len, lines)) <= WIDTH
    reasons = lines[1 : lines.index("It fits with one of:")]
    if reasons[-1].endswith("meshes more, none of which fits"):
        reasons.pop()
    assert reasons and all(" GiB short at best (" in line for line in reasons)
    assert offers(lines) and list(offers(lines).values()) == sorted(offers(lines).values())


@pytest.mark.slow
def test_every_mesh_has_its_reason() -> None:
    lines = refused("dgx-h100")
    assert [line.split("  ")[1] for line in lines[1:5]] == ["dp8", "dp4 x sp2", "dp2 x sp4", "sp8"]
    assert re.fullmatch(r"  and \d+ meshes more, none of which fits", lines[lines.index("It fits with one of:") - 1])


@pytest.mark.parametrize(
    ("meshes", "last"), ((5, "  m4  too large"), (6, "  m5  too large"), (9, "  and 4 meshes more, none of which fits"))
)
def test_many_meshes_are_counted(meshes: int, last: str) -> None:
    plan = Plan(llama("llama-8b", 32), {}, WORK)
    reasons = [Refusal(f"m{i}", "too large") for i in range(meshes)]
    lines = infeasible(plan, load("dgx-h200"), reasons, lambda plan, machine: None).splitlines()
    assert lines[-2] == last and lines[-1].startswith("Nothing tried makes it fit: ") and len(lines) <= LINES


def test_two_changes_where_none_is_enough() -> None:
    """Pins that fill exactly these ranks stand in the way of more of them, and these ranks are too few without pins."""
    tried: list[tuple[int, int]] = []

    def attempt(plan: Plan, machine: Machine) -> Answer | None:
        tried.append((len(plan.pins), machine.ranks))
        step = 2.0 if machine.ranks == 16 else 1.0
        return Answer(plan, replace(NONE, step=step)) if not plan.pins and machine.ranks >= 16 else None

    plan = Plan(llama("llama-8b", 32), {}, WORK, pins={"dp": 8, "tp": 1})
    lines = infeasible(plan, load("dgx-h200"), [Refusal("dp8", "too large")], attempt).splitlines()
    assert offers(lines) == {"no pins, and dgx-h200:2 (16 ranks)": 2.0}
    assert (2, 16) in tried and (0, 8) in tried


def test_two_changes_are_not_looked_for_where_one_is_enough() -> None:
    def attempt(plan: Plan, machine: Machine) -> Answer | None:
        return Answer(plan, replace(NONE, step=1.0)) if "tp" not in plan.pins else None

    plan = Plan(llama("llama-8b", 32), {}, WORK, pins={"dp": 8, "tp": 1})
    lines = infeasible(plan, load("dgx-h200"), [Refusal("dp8", "too large")], attempt).splitlines()
    assert offers(lines) == {"no pin of tp": 1.0, "no pins": 1.0}


def test_an_offer_fits_and_takes_what_it_says() -> None:
    """A pin that alone stands in the way is named, and without it the step takes the seconds that were named."""
    found = offers(refused("dgx-h200@2", "llama-8b", 32, zero=0, dp=2))
    assert "no pin of zero" in found
    free = plan_graph(llama("llama-8b", 32), WORK, machine=load("dgx-h200@2"), pins={"dp": 2})
    assert found["no pin of zero"] == pytest.approx(free.estimate.step, rel=5e-3)


def test_a_refused_mesh_beside_a_plan_says_what_fits() -> None:
    """One that does not fit while others do is listed with the change of degrees that does."""
    found = plan_graph(llama("llama-8b", 32), WORK, machine=load("dgx-h100"), pins={"zero": 0})
    assert found.refused
    for one in found.refused:
        assert " GiB short at best (" in one.reason
        ((change, seconds),) = one.repairs
        assert " -> " in change and seconds >= found.estimate.step
