"""A pinned number of micro-steps is kept to the letter, or refused with the numbers that can be."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_graphs import deeper

from fourfold.compiler.api import plan_graph
from fourfold.compiler.capture import capture
from fourfold.compiler.models import tiny
from fourfold.hardware import load
from fourfold.hardware.errors import UsageError
from fourfold.ir.graph import Graph
from fourfold.ir.mesh import Mesh
from fourfold.ir.plan import Plan
from fourfold.ir.workload import Workload
from fourfold.passes.search.settings import keeping
from fourfold.passes.search.settings import settings as every

SIXTEEN = Workload.fixed(length=64, sequences=16)


@pytest.fixture(scope="module")
def graph() -> Graph:
    """Deep enough to be searched, not exhausted."""
    with torch.device("meta"):
        return deeper(capture(tiny("llama-8b")(), torch.float32), 6)


def _plan(graph: Graph, workload: Workload, **pins: int) -> Plan:
    return Plan(graph, {}, workload, bucket=8, pins=dict(pins))


@pytest.mark.parametrize(
    ("pins", "near"),
    [
        ({"micro_steps": 99}, "the nearest that can be is 16, the most 16"),
        ({"micro_steps": 7, "dp": 1}, "with the other pins; the nearest that can be is 6 or 8, the most 16"),
        ({"micro_steps": 8, "dp": 4}, "with the other pins; the nearest that can be is 4, the most 4"),
        ({"micro_steps": 2, "dp": 1, "capacity": 256}, "with the other pins; the nearest that can be is 4, the most 4"),
    ],
)
def test_what_cannot_be_kept_is_an_error(graph: Graph, pins: dict[str, int], near: str) -> None:
    with pytest.raises(UsageError) as caught:
        plan_graph(graph, SIXTEEN, machine=load("cpu-gloo-4"), pins=pins)
    assert str(caught.value).startswith(f"pin micro_steps={pins['micro_steps']}: a step of 16 x 64 tokens cannot be")
    assert near in str(caught.value)


def test_meshes_that_cannot_keep_it_are_left_out(graph: Graph) -> None:
    """Four data ranks have four sequences each: eight micro-steps need fewer data ranks."""
    found = plan_graph(graph, SIXTEEN, machine=load("cpu-gloo-4"), pins={"micro_steps": 8})
    assert found.plan.micro_steps == 8 and found.plan.mesh.dp <= 2
    assert all(one.plan.micro_steps == 8 for one in found.next_best)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=30), count=st.integers(1, 12), dp=st.sampled_from((1, 3))
)
def test_every_setting_of_a_pinned_count_has_it(graph: Graph, lengths: list[int], count: int, dp: int) -> None:
    plan, mesh = _plan(graph, Workload.of(lengths), micro_steps=count), Mesh(dp=dp)
    try:
        kept = keeping(plan, (mesh,))
    except UsageError as error:
        assert f"micro_steps={count}" in str(error)
        return
    assert kept == (mesh,)
    found = {one.micro_steps for one in every(replace(plan, mesh=mesh))}
    assert found == {count}


@pytest.mark.parametrize("deep", [False, True], ids=["exhausted", "searched"])
def test_a_pinned_zero_2_leaves_pipelines_out(graph: Graph, deep: bool) -> None:
    """Those of the plan, those beside it, and those that are looked at to price the other pins."""
    model = graph if deep else capture(tiny("llama-8b")(), torch.float32)
    found = plan_graph(model, SIXTEEN, machine=load("cpu-gloo-4"), pins={"zero": 2, "dp": 2})
    assert all(one.plan.zero == 2 and one.plan.mesh.pp == 1 for one in (found, *found.next_best))
    assert found.pins.keys() == {"zero", "dp"}


@pytest.mark.parametrize(
    ("pins", "said"),
    [({"zero": 2, "pp": 2}, "pins zero=2 and pp=2: ZeRO 2 is"), ({"zero": 2, "dp": 1, "tp": 2, "sp": 1}, "pin zero=2")],
)
def test_a_pinned_zero_2_of_a_pipeline_is_an_error(graph: Graph, pins: dict[str, int], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        plan_graph(graph, SIXTEEN, machine=load("cpu-gloo-4"), pins=pins)
    assert str(caught.value).startswith(said) and "pin zero=0, 1 or 3" in str(caught.value)
