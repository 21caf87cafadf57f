"""Published runs: read as published, fitted on the stated rows alone, told with their baseline."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from statistics import fmean

import fitting
import pytest
import validate
from frameworks import FRAMEWORKS
from published import PRECISIONS, Run, runs

SMALL = replace(
    next(run for run in runs() if run.id == "V0001"),
    id="T1",
    source="test",
    group="tiny",
    layers=2,
    width=4096,
    heads=32,
    kv_heads=32,
    feed_forward=16384,
    vocabulary=1024,
    sequences=32,
    micro_batch=4,
    gpus=8,
    dp=8,
    recompute="none",
    framework="",
    attention="fused",
)
"""A run small enough to lay out at once; its seconds are set by the tests."""


@pytest.fixture(scope="module")
def every() -> dict[str, Run]:
    return {run.id: run for run in runs()}


def test_rows_are_read_as_published(every: dict[str, Run]) -> None:
    one = every["V0009"]
    assert (one.layers, one.width, one.heads, one.vocabulary, one.length) == (105, 20480, 128, 51200, 2048)
    assert (one.sequences, one.micro_batch, one.gpus, one.seconds) == (2520, 1, 2520, 54.085)
    assert one.layout == "pp35 x dp9 x tp8 x3 z0 b1" and one.schedule == "interleaved-3"
    assert every["V0011"].layout == "dp384 z3 b4" and every["V0011"].framework == "deepspeed-2021"
    assert every["V0017"].schedule == "1f1b" and every["V0017"].framework == "megatron-2021"


def test_every_row_names_a_layout_of_its_gpus(every: dict[str, Run]) -> None:
    for run in every.values():
        assert run.dp * run.tp * run.pp == run.gpus, run.id
        assert run.sequences % (run.dp * run.micro_batch) == 0, run.id
        assert run.framework in FRAMEWORKS and run.precision in PRECISIONS, run.id


def test_rows_and_what_is_left_out_are_all_that_was_published(every: dict[str, Run]) -> None:
    left = validate.left_out({run.source for run in every.values()})
    assert len(every) + sum(count for _, count, _ in left) == 1940
    assert sum(count for source, count, _ in left if source == "megatron-sc21") == 0


def test_fitted_on_the_weak_scaling_rows_alone(every: dict[str, Run]) -> None:
    cases = [fitting.Case(run, None) for run in every.values() if run.source == "megatron-sc21"]  # type: ignore[arg-type]
    assert [case.run.id for case in fitting.chosen(cases)] == [f"V{i:04}" for i in range(1, 11)]
    others = [fitting.Case(replace(SMALL, id=f"T{i}"), None) for i in range(5)]  # type: ignore[arg-type]
    assert [case.run.id for case in fitting.chosen(others)] == ["T0", "T2", "T4"]


def test_the_fit_finds_the_efficiency_that_made_the_seconds() -> None:
    """Rows that are not fitted on do not move it; the constant throughput is that of the fitted rows."""
    case = fitting.case_of(SMALL)
    told = [replace(SMALL, id=f"T{i}", seconds=case.estimate(0.7).step * (3.0 if i % 2 else 1.0)) for i in range(4)]
    seen: list[None] = []
    rows = fitting.rows_of(told, {}, lambda: seen.append(None))
    assert len(seen) == 4 and [row.run.id for row in rows] == ["T0", "T1", "T2", "T3"]
    assert [row.fitted for row in rows] == [True, False, True, False]
    assert rows[0].efficiency == pytest.approx(0.7, rel=1e-3)
    assert [row.error for row in rows] == pytest.approx([0.0, -2 / 3, 0.0, -2 / 3], abs=1e-3)
    assert [row.baseline for row in rows] == pytest.approx([0.0, -2 / 3, 0.0, -2 / 3], abs=1e-9)
    text = validate.summary(rows)
    assert "test tiny fitted on" in text and "test tiny others" in text and "66.7%" in text


def test_a_gain_names_the_part_it_comes_from() -> None:
    theirs = fitting.case_of(SMALL).estimate(0.7)
    parts = dict(theirs.parts)
    shorter = {**parts, "products": parts["products"] / 2}
    ours = replace(theirs, step=sum(shorter.values()), parts=tuple(shorter.items()))
    share = parts["products"] / 2 / theirs.step
    assert validate.because(theirs, ours) == f"{ours.step / theirs.step - 1:+.1%} (products {-share:+.1%})"
    grown = parts["products"] / 2 / ours.step
    assert validate.because(ours, theirs) == f"{grown:+.1%} (products {grown:+.1%})"


def test_a_gain_tells_the_framework_from_the_layout() -> None:
    """What a framework took beside is no gain of the layout; a small gain needs no reason."""
    ours = fitting.case_of(SMALL).estimate(0.7)
    share = 0.2 * ours.step
    alike = replace(ours, step=ours.step + share, parts=(*ours.parts, ("bubble", share)))
    theirs = replace(alike, step=alike.step + share, parts=(*alike.parts, ("waiting", share)))
    found = validate.gained(theirs, alike, ours)
    assert found["gain"] == pytest.approx(1 - 1 / 1.4) and found["step"] == ours.step
    told = f"the framework {-1 / 7:+.1%} (waiting {-1 / 7:+.1%}); the layout {-1 / 6:+.1%} (bubble {-1 / 6:+.1%})"
    assert found["because"] == told
    assert validate.gained(replace(ours, step=ours.step * 1.1), ours, ours)["because"] == ""


def test_json_has_rows_and_what_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["validate", "--rows", "V0001", "--efficiency", "0.9", "--json"])
    validate.main()
    told = json.loads(capsys.readouterr().out)
    (row,) = told["rows"]
    assert told["left_out"] == [] and told["unpinned"] == []
    assert row["id"] == "V0001" and row["efficiency"] == 0.9 and row["constant_error"] == pytest.approx(0.0)
    assert row["predicted"] == pytest.approx(sum(row["parts"].values()))


def test_rows_without_an_efficiency_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["validate", "--rows", "V0001"])
    with pytest.raises(SystemExit):
        validate.main()


def test_a_baseline_is_beaten_by_half_or_not() -> None:
    assert validate.verdict(0.03, 0.08).split() == ["0.38", "beaten"]
    assert validate.verdict(0.041, 0.08).split() == ["0.51", "not", "so"]
    assert validate.verdict(0.0, 0.0).split() == []


@pytest.mark.slow
def test_published_steps_of_megatron_are_predicted(every: dict[str, Run]) -> None:
    own = [run for run in every.values() if run.source == "megatron-sc21"]
    rows = fitting.rows_of(own, {}, lambda: None)

    def errors(group: str, which: str = "error") -> list[float]:
        return [abs(getattr(row, which)) for row in rows if row.run.group == group]

    bounds = {"weak-scaling": (0.03, 0.06), "strong-scaling": (0.04, 0.06), "zero3-vs-3d": (0.09, 0.15)}
    for group, (mean, worst) in bounds.items():
        assert fmean(errors(group)) <= mean and max(errors(group)) <= worst, group
        assert fmean(errors(group)) <= fmean(errors(group, "baseline")) / 2, group
