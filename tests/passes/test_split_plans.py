"""Plans whose schedule splits the backward: their time and memory against the text, the solver's order, refusals."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path

import pytest
import torch
from tiny_graphs import deeper

from fourfold.compiler.api import plan_graph
from fourfold.compiler.capture import capture
from fourfold.compiler.models import shipped
from fourfold.compiler.schedules import Scheduled
from fourfold.hardware import Machine, load
from fourfold.hardware.errors import UsageError
from fourfold.ir.answer import Answer
from fourfold.ir.graph import Graph
from fourfold.ir.mesh import Mesh
from fourfold.ir.plan import Layout, Plan
from fourfold.ir.schedule import Schedule
from fourfold.ir.states import deferrable, states_of
from fourfold.ir.verify import complaints
from fourfold.ir.workload import Workload
from fourfold.passes.price.in_flight import in_flight, moments, owed
from fourfold.passes.price.price import Priced, priced
from fourfold.passes.schedule import KINDS
from fourfold.passes.schedule.timing import timed
from fourfold.passes.schedule.zero_bubble import zero_bubble

STEPS = 6


@cache
def llama() -> Graph:
    with torch.device("meta"):
        return deeper(capture(shipped("llama-8b")(layers=2), torch.bfloat16), 12)


@cache
def machine() -> Machine:
    return load("dgx-h200@4")


@cache
def planned(schedule: str, **pins: str | int) -> Answer:
    """Four stages of one rank each."""
    how: dict[str, str | int] = {"pp": 4, "tp": 1, "dp": 1, "micro_steps": STEPS, "schedule": schedule, **pins}
    return plan_graph(llama(), Workload.fixed(length=4096, sequences=STEPS), machine=machine(), pins=how)


def asked(plan: Plan) -> Priced:
    return priced(plan, machine())


def test_what_is_kept_is_read_off_the_text() -> None:
    plan = planned("zero_bubble").plan
    for p, m in product(range(2, 6), range(1, 9)):
        one = replace(plan, mesh=Mesh(pp=p), micro_steps=m)
        for place in range(p):
            found = moments(zero_bubble(p, m), place)
            assert in_flight(one, place) == max(whole for whole, _ in found)
            assert owed(one, place) == max(late for _, late in found)


@pytest.mark.parametrize("kind", ["gpipe", "1f1b"])
def test_a_whole_backward_owes_nothing(kind: str) -> None:
    plan = replace(planned("1f1b").plan, schedule=kind)
    for place in range(4):
        assert owed(plan, place) == 0
        assert {late for _, late in moments(KINDS[kind](4, STEPS), place)} == {0}
        assert in_flight(plan, place) == max(whole for whole, _ in moments(KINDS[kind](4, STEPS), place))


def test_only_linear_layers_wait() -> None:
    block = llama().blocks["layers.*"]
    late = deferrable(block, states_of(block, Layout())[1])
    assert len(late) == 7
    assert {node.op for node in block.nodes if node.name in late} == {"linear"}


def test_the_halves_are_the_backward() -> None:
    whole, split = asked(planned("1f1b").plan), asked(replace(planned("1f1b").plan, schedule="zero_bubble"))
    for one, two in zip(whole.stages, split.stages, strict=True):
        assert one.late == one.again == 0.0
        assert two.split["I"] + two.split["W"] == pytest.approx(one.backward + two.again)
        assert 0.0 < two.late < one.backward / 2


def test_zero_bubble_takes_less_time_and_keeps_pairs() -> None:
    whole = planned("1f1b").plan
    split = replace(whole, schedule="zero_bubble")
    assert asked(split).step.seconds < asked(whole).step.seconds
    for one, two in zip(asked(whole).lines, asked(split).lines, strict=True):
        pairs = sum(two.work[name].late.kept * count for name, count in two.counts.items())
        saved = one.kept[0] / one.in_flight
        added = two.owed * pairs + max(0.0, pairs - saved)
        assert two.memory() == one.memory_with(one.kept[0] + added, one.kept[1])


def test_the_search_offers_it() -> None:
    answer = plan_graph(
        llama(), Workload.fixed(length=4096, sequences=STEPS), machine=machine(), pins={"pp": 4, "tp": 1, "dp": 1}
    )
    assert answer.plan.schedule == "zero_bubble"
    assert answer.estimate.step <= planned("1f1b").estimate.step


def test_less_memory_takes_the_whole_backward() -> None:
    """On a device that 1F1B fills there is no room for what waits, unless something is done again."""
    whole = asked(planned("1f1b", recompute="none").plan)
    most = whole.memory().total.high + machine().device.reserve
    room = replace(machine(), device=replace(machine().device, usable=most * (1 + 1e-6)))
    pins: dict[str, str | int] = {"pp": 4, "tp": 1, "dp": 1, "micro_steps": STEPS, "recompute": "none"}
    answer = plan_graph(llama(), Workload.fixed(length=4096, sequences=STEPS), machine=room, pins=pins)
    assert answer.plan.schedule == "1f1b"


def test_a_solved_order_is_part_of_the_plan(tmp_path: Path) -> None:
    plan = planned("solved").plan
    assert Schedule.parse(plan.order).micro_steps == STEPS
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    executed = Scheduled.of(plan)(STEPS)
    for line, order in zip(executed.lines, Schedule.parse(plan.order).lines, strict=True):
        assert tuple(action for action in line if action.kind in "FBIW") == order
    assert str(Scheduled.of(plan)(STEPS - 1)) == str(Scheduled.of(replace(plan, schedule="zero_bubble"))(STEPS - 1))


def test_a_solved_order_is_no_slower_than_zero_bubble() -> None:
    plan = planned("solved").plan
    found = asked(plan)
    durations = {(at, kind): took for at, cost in enumerate(found.stages) for kind, took in cost.split.items()}
    mine = timed(Schedule.parse(plan.order), durations, send=found.send)
    assert mine.makespan <= timed(zero_bubble(4, STEPS), durations, send=found.send).makespan
    assert any(decision.by == "SolveSchedule" for decision in plan.log)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"order": "0F0 0I0"}, "its order is no schedule: rank 0 0W0: is missing"),
        ({"micro_steps": STEPS - 1}, f"an order of {STEPS} micro-steps is not for a step of {STEPS - 1}"),
        ({"schedule": "zero_bubble"}, "an order of 4 stages on 4 ranks is not for zero_bubble"),
        ({"zero": 3}, "use ZeRO 0 or 1"),
    ],
)
def test_an_edited_plan_is_refused(change: dict[str, object], said: str) -> None:
    assert said in "; ".join(complaints(replace(planned("solved").plan, **change)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("pins", "said"),
    [
        ({"schedule": "zero_bubble", "zero": 3}, "pin zero=0 or zero=1, or schedule=1f1b"),
        ({"schedule": "solved", "micro_steps": 17}, "pin schedule=zero_bubble for more"),
        ({"schedule": "zerobubble"}, "zero_bubble or solved"),
    ],
)
def test_pins_that_do_not_go_together(pins: dict[str, str | int], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        plan_graph(llama(), Workload.fixed(length=4096, sequences=STEPS), machine=machine(), pins=pins)
