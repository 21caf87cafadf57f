"""What the doctor looks at, and when it says that something needed is missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fourfold.compiler.cli import doctor

Command = Callable[..., Any]


def test_this_installation_is_well(fourfold: Command) -> None:
    said = fourfold("doctor", "--json")
    assert said.code == 0
    found = {one["about"]: one for one in said.data["findings"]}
    assert {"python", "fourfold", "torch", "ortools", "typer", "cache", "processors", "GPUs"} <= found.keys()
    assert all(one["level"] in ("ok", "note") for one in found.values())
    text = fourfold("doctor")
    assert text.code == 0 and "This installation" in text.out and "GPUs" in text.out


@pytest.mark.parametrize(
    ("name", "versions", "extra", "level", "words"),
    [
        ("typer", ">=0.1", "", "ok", ""),
        ("typer", ">=99", "", "error", "is not >=99, needed: run make install"),
        ("typer", ">=0.1,<0.2", "viz", "note", "pip install 'fourfold[viz]'"),
        ("no-such-library-there", ">=1", "", "error", "missing, needed"),
        ("no-such-library-there", ">=1", "hf", "note", "missing, for models of transformers"),
    ],
)
def test_a_library(name: str, versions: str, extra: str, level: str, words: str) -> None:
    found = doctor.library(name, versions, extra)
    assert (found.about, found.level) == (name, level) and words in found.found


@pytest.mark.parametrize(
    ("found", "versions", "fit"),
    [
        ("2.13.0+cpu", ">=2.11,<2.14", True),
        ("2.14.0", ">=2.11,<2.14", False),
        ("2.9.1", "<2.14,>=2.11", False),
        ("2.11", ">=2.11", True),
        ("10.0.1", ">=9.15,<10", False),
        ("5", "", True),
    ],
)
def test_versions_are_numbers(found: str, versions: str, fit: bool) -> None:
    assert doctor.fits(found, versions) is fit


def test_what_is_needed_and_missing_is_13(fourfold: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        doctor, "_declared", lambda: ["torch>=99", 'matplotlib>=99; extra == "viz"', "x; extra == 'dev'"]
    )
    said = fourfold("doctor", "--json")
    assert said.code == 13
    levels = {one["about"]: one["level"] for one in said.data["findings"]}
    assert levels["torch"] == "error" and levels["matplotlib"] == "note" and "x" not in levels


def test_a_cache_that_cannot_be_written_is_a_note(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert [one.level for one in doctor.places()] == ["ok"]
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    assert [one.level for one in doctor.places()] == ["note"]
