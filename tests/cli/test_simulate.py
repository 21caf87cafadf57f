"""simulate: steps of known durations drawn to the letter, their traces and pictures, and what the command answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fourfold.costmodel.timeline import simulate
from fourfold.hardware.machine import Overlap
from fourfold.ir.chart import Chart
from fourfold.ir.gantt import text
from fourfold.passes.charting import bars_of_schedule, bars_of_tasks
from fourfold.passes.schedule import scheduled
from fourfold.passes.schedule.timing import timed
from fourfold.passes.seconds import Times
from fourfold.passes.steps import CallCost, tasks
from fourfold.passes.work import Replay

Command = Callable[..., Any]
Golden = Callable[..., None]
SMALL = ("--hardware", "cpu-gloo-4", "--length", "64", "--tokens-per-step", "4k")


def line(kind: str, *, send: float = 0.1) -> Chart:
    """Four places, eight micro-steps; a stage takes 1 s forward and 2 s backward, half of it where a place has two."""
    share = 0.5 if kind.startswith("interleaved") else 1.0
    found = timed(scheduled(kind, 4, 8), lambda _, what, __: share * (1 if what == "F" else 2), send=send)
    return Chart("predicted", tuple(bars_of_schedule(found)), found.makespan, {r: f"place {r}" for r in range(4)})


def pool(zero: int) -> Chart:
    """Three micro-steps of four calls on one of eight data ranks; a gather takes 1/4 s, a reduction 3/4 s."""
    call = CallCost(Times(1.0, 2.0), Times(0.0, 0.0), Replay(), 0.25 if zero else 0.0, 0.75)
    built = tasks([call] * 4, zero=zero, micro_steps=3, optimizer=1.0)
    found = simulate(built, overlap=Overlap())
    return Chart("predicted", tuple(bars_of_tasks(found, list("abcd"))), found.makespan, {0: "rank 0"})


@pytest.mark.parametrize("kind", ["1f1b", "interleaved-2", "gpipe"])
def test_a_line_of_stages(kind: str, golden: Golden) -> None:
    golden("\n".join(text([line(kind)])))


@pytest.mark.parametrize("zero", [0, 3])
def test_data_ranks(zero: int, golden: Golden) -> None:
    golden("\n".join(text([pool(zero)])))


def test_letters_dots_and_numbers_of_a_schedule_without_messages() -> None:
    """33 units of time in 66 columns: forward takes two, backward four, and 3/11 of each line are dots."""
    rows = text([line("1f1b", send=0.0)], 2 + 7 + 1 + 66 + 1)[:4]
    assert rows[0] == "  place 0 F0F1F2F3" + "." * 12 + "B0--F4B1--F5B2--F6B3--F7B4--..B5--..B6--..B7--"
    assert [row.count(".") for row in rows] == [66 * 3 // 11] * 4
