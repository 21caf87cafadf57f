"""Figures and answers as text: golden, 80 columns, the same with and without colour."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fourfold.compiler.cli.render import styled
from fourfold.ir import report, text
from fourfold.ir.answer import Answer
from fourfold.ir.plan import Plan

Golden = Callable[..., None]


def test_an_answer_prints(answer: Answer, golden: Golden) -> None:
    golden(str(answer))


def test_why_prints(plan: Plan, golden: Golden) -> None:
    golden(text.plain(report.why(plan)))
    golden(text.plain(report.why(plan, "layers.1.*")), part="modules")


def test_a_difference_prints(answer: Answer, golden: Golden) -> None:
    other = answer.next_best[0]
    rows = report.difference((answer.plan, other.plan), (answer.estimate, other.estimate))
    golden(text.plain([text.Section("a -> b", tuple(rows), "lll")]))


def test_no_line_is_wider_than_the_terminal(answer: Answer) -> None:
    long = replace(answer, pins={"tp": 12345.678}, refused=answer.refused * 3)
    for width in (80, 60):
        for section in long.sections():
            assert [line for line in section.lines(width) if len(line) > width] == []


@pytest.mark.parametrize("colour", ["truecolor", None])
def test_colour_changes_no_character(answer: Answer, colour: str | None) -> None:
    for section in answer.sections():
        console = Console(force_terminal=colour is not None, color_system=colour, width=80, highlight=False)  # type: ignore[arg-type]
        with console.capture() as caught:
            console.print(styled(section, 80), soft_wrap=True)
        shown = caught.get()
        assert ("\x1b[" in shown) == (colour is not None)
        assert re.sub(r"\x1b\[[\d;]*m", "", shown).rstrip("\n").splitlines() == section.lines()


def test_more_memory_than_there_is_stands_out() -> None:
    assert text.bar(5, 20, 10, 10) == "#####+++++!"
    assert text.bar(0, 0, 10, 10) == ".........."


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0 s"), (5.82, "5.82 s"), (0.9996, "1.00 s"), (0.0123, "12.3 ms"), (4.5e-5, "45.0 us"), (812.0, "812 s")],
)
def test_seconds(value: float, shown: str) -> None:
    assert text.seconds(value) == shown


@pytest.mark.parametrize(
    ("low", "high", "shown"),
    [
        (0, 512, "0 B - 512 B"),
        (2**30, 2**30, "1.00 GiB"),
        (1.5 * 2**30, 2**31, "1.50 - 2.00 GiB"),
        (2**29, 2**30, "512 MiB - 1.00 GiB"),
    ],
)
def test_bands(low: float, high: float, shown: str) -> None:
    assert text.sizes(low, high) == shown.replace("0 B - 512 B", "0 - 512 B")


@given(st.floats(min_value=1e-9, max_value=1e6, allow_nan=False))
def test_a_figure_is_short_and_right(value: float) -> None:
    number, unit = text.seconds(value).split()
    scale = {"s": 1.0, "ms": 1e-3, "us": 1e-6}[unit]
    assert float(number) * scale == pytest.approx(value, rel=6e-3, abs=6e-9)
    if 1e-6 <= value < 1e3:
        assert len(number) <= 5
