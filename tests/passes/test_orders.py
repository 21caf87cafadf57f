"""Which axis lies inside the node is part of the choice: two nodes of eight, the search and every order pinned."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import pytest
import torch

from fourfold.compiler.api import plan_graph
from fourfold.compiler.capture import capture
from fourfold.compiler.models.llama import Llama, LlamaConfig
from fourfold.hardware import load
from fourfold.hardware.errors import UsageError
from fourfold.ir.answer import Answer
from fourfold.ir.graph import Graph
from fourfold.ir.mesh import AXES, Mesh
from fourfold.ir.plan import Plan
from fourfold.ir.report import difference
from fourfold.ir.serial import to_json
from fourfold.ir.workload import Workload
from fourfold.passes.price.pipelined import neighbours
from fourfold.passes.search.orders import links, orders

Pins = Mapping[str, str | int]
PIPELINE: Pins = {"pp": 2, "dp": 8, "tp": 1, "sp": 1, "schedule": "1f1b", "micro_steps": 16}
SEQUENCE: Pins = {"pp": 1, "dp": 1, "tp": 2, "sp": 8, "sequence": "gather_kv"}
ORDERS = (AXES, ("dp", "pp", "sp", "tp"), ("tp", "pp", "dp", "sp"))
"""All that two used axes can be in, whichever they are."""


@cache
def graph(kv_heads: int) -> Graph:
    """Seven layers of width 4096."""
    sizes = {"vocabulary": 32000, "width": 4096, "layers": 7, "heads": 32, "feed_forward": 11008}
    with torch.device("meta"):
        return capture(Llama(LlamaConfig(kv_heads=kv_heads, **sizes)), torch.bfloat16)


def planned(pins: Pins, kv_heads: int, sequences: int) -> Answer:
    workload = Workload.fixed(length=8192, sequences=sequences)
    return plan_graph(graph(kv_heads), workload, machine=load("dgx-h100:2"), pins=pins, top=3)


@pytest.mark.parametrize(
    ("pins", "kv_heads", "sequences", "best", "usual"),
    [
        # A message every micro-step costs more across nodes than one reduction at the end.
        (PIPELINE, 8, 128, "dp8 x pp2", "pp2 x dp8"),
        # All keys and values of as many heads as there are go to every sequence rank; tensor ranks move less.
        (SEQUENCE, 32, 2, "tp2 x sp8", "sp8 x tp2"),
    ],
)
def test_the_search_puts_inside_the_node_what_moves_most(
    pins: Pins, kv_heads: int, sequences: int, best: str, usual: str
) -> None:
    free = planned(pins, kv_heads, sequences)
    each = {order: planned({**pins, "order": ",".join(order)}, kv_heads, sequences) for order in ORDERS}
    assert str(free.plan.mesh) == best and str(each[AXES].plan.mesh) == usual
    assert free.estimate.step == pytest.approx(min(answer.estimate.step for answer in each.values()))
    assert free.estimate.step < 0.98 * each[AXES].estimate.step
    told = str(free)
    assert best in told and f"{best[:2]}, {best[-3:-1]}, the last inside a node first" in told
    rows = difference((free.plan, each[AXES].plan), (free.estimate, each[AXES].estimate))
    assert ("mesh order", " ".join(free.plan.mesh.order), "-") in rows


def test_only_orders_that_change_what_is_crossed() -> None:
    one, two = load("dgx-h100"), load("dgx-h100:2")
    assert not list(orders(Mesh(dp=2, tp=4), one))
    assert not list(orders(Mesh(dp=16), two))
    found = list(orders(Mesh(pp=2, tp=8), two))
    assert [str(mesh) for mesh in found] == ["tp8 x pp2"]
    many = list(orders(Mesh(pp=2, dp=2, sp=2, tp=2), two))
    crossed = [links(mesh, two) for mesh in (Mesh(pp=2, dp=2, sp=2, tp=2), *many)]
    assert len(set(crossed)) == len(crossed) and all(mesh.stride("dp") > mesh.stride("sp") for mesh in many)


def test_a_message_between_stages_is_priced_where_it_leaves_the_node() -> None:
    two = load("dgx-h100:2")
    assert neighbours(Mesh(pp=16), two) == (7, 8) and neighbours(Mesh(dp=2, pp=8).ordered(("dp", "pp")), two) == (0, 1)


@pytest.mark.parametrize("order", ["tp,dp", "pp,dp,sp,sp", "pp,sp,dp,tp", "x"])
def test_an_order_names_every_axis_once(order: str) -> None:
    with pytest.raises(UsageError, match=r"pin order="):
        planned({**PIPELINE, "order": order}, 8, 128)


def test_an_order_is_saved() -> None:
    plan = planned({**SEQUENCE, "order": "pp,tp,dp,sp"}, 32, 2).plan
    assert Plan.read(to_json(plan)).mesh == plan.mesh != Mesh(tp=2, sp=8)
