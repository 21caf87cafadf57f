"""What the planner finds by itself: Megatron's layout, plans of any number of ranks, pins, faster machines."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from textwrap import dedent

import pytest
import torch
from tiny_graphs import deeper

from fourfold.compiler.api import plan_graph
from fourfold.compiler.capture import capture
from fourfold.compiler.models import shipped, tiny
from fourfold.hardware import Machine, load
from fourfold.ir import report
from fourfold.ir.answer import Answer
from fourfold.ir.graph import Graph
from fourfold.ir.text import plain
from fourfold.ir.workload import Workload

WORK = Workload.fixed(length=8192, sequences=64)


@cache
def llama() -> Graph:
    """The 32 layers of llama-8b."""
    with torch.device("meta"):
        return deeper(capture(shipped("llama-8b")(layers=2), torch.bfloat16), 32)


@cache
def small(name: str) -> Graph:
    with torch.device("meta"):
        return capture(tiny(name)(), torch.bfloat16)


@cache
def answer(spec: str, **pins: int) -> Answer:
    return plan_graph(llama(), WORK, machine=load(spec), pins=pins)


def test_more_layers_are_the_captured_ones() -> None:
    with torch.device("meta"):
        captured = capture(tiny("llama-8b")(layers=5), torch.bfloat16)
    grown = deeper(small("llama-8b"), 5)
    assert (grown.calls, grown.blocks) == (captured.calls, captured.blocks)


# Where gathering and scattering together take longer than one reduction in the switch, norms stay whole.
@pytest.mark.parametrize(
    ("spec", "tp", "norms"),
    (("dgx-h200", 2, "whole"), ("dgx-h200", 8, "whole"), ("dgx-a100-80gb", 8, "tokens"), ("mi300x-8", 2, "tokens")),
)
def test_the_layout_of_megatron_is_found(spec: str, tp: int, norms: str) -> None:
    expected = f"""\
        Cut over tp{tp}
          first         columns     embedding
          layers.* x32  columns     attention.q, attention.k, attention.v,
                                    feed_forward.gate, feed_forward.up
                        rows        attention.out, feed_forward.down
                        heads       attention
                        {norms:<10}  attention_norm, feed_forward_norm
          last          vocabulary  head
                        {norms:<10}  norm"""
    plan = answer(spec, tp=tp).plan
    assert plan.mesh.tp == tp
    assert plain(report.cuts(plan)) == dedent(expected)


def test_sequence_cut_norms_hand_cut_tokens_on() -> None:
    """What one layer gives the next is cut where its norms are, so nothing is gathered in between."""
    states = {name: layout.states for name, layout in answer("dgx-a100-80gb", tp=8).plan.layouts.items()}
    assert states["layers.*"]["in0"] == states["layers.*"]["add:3"] == states["last"]["in0"] == "S1"


@pytest.mark.parametrize(
    "spec", ("dgx-h200@1", "dgx-h200@3", "dgx-h200@6", "dgx-h200@6:2", "dgx-h200@1:3", "cpu-gloo-8@6")
)
@pytest.mark.parametrize("name", ("llama-8b", pytest.param("gpt2", marks=pytest.mark.slow)))
def test_any_number_of_ranks_plans(name: str, spec: str) -> None:
    machine = load(spec)
    found = plan_graph(small(name), Workload.fixed(length=256, sequences=24), machine=machine)
    assert found.plan.mesh.ranks == machine.ranks == found.plan.mesh.pool * found.plan.mesh.tp * found.plan.mesh.pp
    assert 0 < found.estimate.step < math.inf


@pytest.mark.parametrize(
    "pins", ({"tp": 4}, {"dp": 2}, {"zero": 0}, {"micro_steps": 4}, {"recompute": "full"}, {"tp": 2, "zero": 3})
)
def test_pinned_settings_are_kept_and_cost_something_or_nothing(pins: dict[str, str | int]) -> None:
    found = plan_graph(deeper(llama(), 6), WORK, machine=load("dgx-h200"), pins=pins)
    kept: dict[str, str | int] = {"tp": found.plan.mesh.tp, "dp": found.plan.mesh.dp, "zero": found.plan.zero}
    kept |= {"micro_steps": found.plan.micro_steps, "recompute": found.plan.recompute[1]}
    assert {name: kept[name] for name in pins} == pins
    assert found.pins.keys() == pins.keys() and all(cost >= 0 for cost in found.pins.values())


@pytest.mark.parametrize(("pattern", "label"), (("layers.*.feed_forward.down", "f"), ("*.up", "d"), ("embedding", "v")))
def test_a_cut_pinned_by_module_is_kept(pattern: str, label: str) -> None:
    pins: dict[str, str | int] = {"tp": 2, pattern: label}
    found = plan_graph(deeper(llama(), 6), WORK, machine=load("dgx-h200"), pins=pins)
    cuts = {f"{b}.{node}": cut for b, layout in found.plan.layouts.items() for node, cut in layout.cuts.items()}
    assert [cut for name, cut in cuts.items() if name.endswith(pattern.rpartition(".")[2])] == [label]
    assert found.pins[pattern] >= 0


def faster(machine: Machine, links: float) -> Machine:
    """The same machine with faster links: what was measured on them, and what their profile says."""
    groups = tuple(
        replace(
            g,
            node=replace(
                g.node, fabrics=tuple(replace(f, rate=f.rate * links, link=f.link * links) for f in g.node.fabrics)
            ),
        )
        for g in machine.groups
    )
    known = machine.calibration
    if known is not None:
        anchors = (replace(a, points=tuple((size, t / links) for size, t in a.points)) for a in known.anchors)
        known = replace(known, anchors=tuple(anchors))
    return replace(machine, groups=groups, calibration=known)


@pytest.mark.parametrize(
    "spec",
    (
        "dgx-h200",
        pytest.param("dgx-a100-80gb", marks=pytest.mark.slow),
        pytest.param("rtx4090-server-8", marks=pytest.mark.slow),
    ),
)
def test_faster_links_never_slow_the_step(spec: str) -> None:
    graph = llama() if spec != "rtx4090-server-8" else deeper(llama(), 2)
    steps = [plan_graph(graph, WORK, machine=faster(load(spec), k), top=0).estimate.step for k in (0.25, 1.0, 4.0)]
    assert steps == sorted(steps, reverse=True)


def test_more_memory_never_slows_the_step() -> None:
    machine = load("dgx-h200")
    sizes = [machine.device.usable * share for share in (0.5, 0.75, 1.0, 2.0)]
    machines = [replace(machine, device=replace(machine.device, usable=size)) for size in sizes]
    steps = [plan_graph(llama(), WORK, machine=one, top=0).estimate.step for one in machines]
    assert steps == sorted(steps, reverse=True)


def test_sequences_of_many_lengths_plan(tmp_path: Path) -> None:
    lengths = tmp_path / "lengths.csv"
    lengths.write_text("".join(f"{128 + (i * i * 37) % 16000}\n" for i in range(500)))
    work = Workload.sample(lengths, tokens_per_step=2**19)
    found = plan_graph(llama(), work, machine=load("dgx-h200"))
    assert 0 < found.estimate.step < math.inf and found.estimate.tokens == work.tokens
    assert found.plan.capacity >= work.longest
