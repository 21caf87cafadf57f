"""plan, show, why and diff on a small model: what they print at 80 columns, and their JSON."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]
SMALL = ("--hardware", "cpu-gloo-4", "--length", "64", "--tokens-per-step", "4k")


@pytest.fixture
def kept(fourfold: Command, tiny: str, tmp_path: Path) -> str:
    """A saved plan over four data ranks."""
    file = str(tmp_path / "plan.json")
    assert fourfold("plan", tiny, *SMALL, "--pin", "dp=4", "--save", file).code == 0
    return file


def test_plan_says_what_it_assumed_then_all_there_is(fourfold: Command, tiny: str) -> None:
    said = fourfold("plan", tiny, "--hardware", "cpu-gloo-4", "--pin", "dp=2", "--pin", "tp=2")
    assert said.code == 0 and "\x1b" not in said.out
    assert max(map(len, said.out.splitlines())) <= 80
    titles = [line.split(":")[0].split(",")[0] for line in said.out.splitlines() if line and line[0] != " "]
    assert titles[:2] == ["Assumed", "For"]
    assert titles[2:6] == ["Plan", "Cut over tp2", "Step", "Memory of the fullest rank"]
    assert "Pins" in titles and "--length" in said.out and "--optimizer" in said.out


def test_plan_as_json(fourfold: Command, tiny: str) -> None:
    data = fourfold("plan", tiny, *SMALL, "--pin", "tp=2", "--json").data
    assert set(data) == {"schema", "plan", "estimate", "next_best", "refused", "pins", "notes", "solving"}
    assert data["schema"] == "fourfold.answer/1"
    assert data["plan"]["mesh"] == {"pp": 1, "dp": 2, "sp": 1, "tp": 2}
    assert data["plan"]["workload"] == {"tokens": 4096, "sequences": 64, "longest": 64}
    assert data["estimate"]["ranks"] == 4 and 0 < data["estimate"]["mfu"] < 1
    assert sum(data["estimate"]["parts"].values()) == pytest.approx(data["estimate"]["step"], rel=0.05)
    assert data["estimate"]["peak"]["low"] <= data["estimate"]["peak"]["high"] <= data["estimate"]["limit"]
    assert data["pins"]["tp"]["value"] == 2 and isinstance(data["pins"]["tp"]["cost"], float)


def test_a_saved_plan_shows_the_same(fourfold: Command, kept: str, tiny: str) -> None:
    planned = fourfold("plan", tiny, *SMALL, "--pin", "dp=4", "--json").data
    shown = fourfold("show", kept, "--json").data
    assert (shown["plan"], shown["estimate"]) == (planned["plan"], planned["estimate"])
    assert max(map(len, fourfold("show", kept).out.splitlines())) <= 80


def test_why(fourfold: Command, kept: str) -> None:
    said = fourfold("why", kept)
    assert said.code == 0 and "mesh" in said.out and "ZeRO" in said.out
    one = fourfold("why", kept, "layers.1.attention.*", "--json").data
    assert one["sections"]["Ops of layers.1.attention.*"][0][0] == "layers.*.attention.q"
    said = fourfold("why", kept, "nowhere")
    assert said.code == 2 and "is no decision and no module" in said.line


def test_diff(fourfold: Command, kept: str, tiny: str, tmp_path: Path) -> None:
    other = str(tmp_path / "other.json")
    assert fourfold("plan", tiny, *SMALL, "--pin", "dp=2", "--pin", "tp=2", "--save", other).code == 0
    rows = {row["what"]: (row["a"], row["b"]) for row in fourfold("diff", kept, other, "--json").data}
    assert rows["mesh dp"] == ("4", "2") and rows["mesh tp"] == ("1", "2")
    assert {"step", "memory", "MFU"} <= set(rows) and any("columns" in what for what in rows)
    same = [row["what"] for row in fourfold("diff", kept, kept, "--json").data]
    assert same == ["step", "memory", "MFU"]


def test_overrides_change_the_model(fourfold: Command, tiny: str) -> None:
    data = [fourfold("plan", tiny, *SMALL, "--set", f"layers={n}", "--top", "0", "--json").data for n in (1, 3)]
    assert [d["plan"]["blocks"].get("layers.*", d["plan"]["blocks"].get("layers.0")) for d in data] == [1, 3]
    assert data[0]["next_best"] == []
