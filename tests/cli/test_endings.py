"""Every mistake ends in one clear line and its exit code, never in a traceback; with --json in a JSON error."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fourfold.compiler.cli import ending
from fourfold.hardware.errors import ModelError

HERE = Path(__file__).parent
MODELS = HERE / "models.py"
Command = Callable[..., Any]
SMALL = ("--hardware", "cpu-gloo-4", "--length", "64", "--tokens-per-step", "1k")

USAGE = [
    ((), "no command", ""),
    (("plan",), "no model", "Missing argument 'MODEL'; `fourfold plan --help`"),
    (("plan", "m", "--hardwares", "x"), "unknown option", "No such option: --hardwares"),
    (("frobnicate",), "unknown command", "No such command 'frobnicate'"),
    (("plan", "m"), "no machine", "which machine?"),
    (("plan", "m", *SMALL, "--optimizer", "adamx"), "unknown optimizer", "optimizer 'adamx' is not known"),
    (("plan", "m", *SMALL, "--precision", "fp7"), "unknown precision", "--precision 'fp7' is not known"),
    (("plan", "m", *SMALL, "--pin", "tp"), "half a pin", "--pin 'tp' is not KEY=VALUE"),
    (("show", "absent.json"), "no such plan", "plan absent.json cannot be read"),
    (("show", str(MODELS)), "no plan", "is not a plan"),
    (("run", "m", "--data", "absent.txt"), "no such data", "data 'absent.txt' cannot be read"),
    (("run", "m", "--steps", "0"), "no steps", "--steps"),
    (("run", "m", "--lr", "nan"), "no rate", "--lr nan is no learning rate"),
    (("run", "m", "--lr", "-1"), "a negative rate", "--lr -1 is no learning rate"),
    (("verify", "m", "--precision", "bf16"), "verify in bf16", "verify runs in fp32 or fp64"),
]


@pytest.mark.parametrize(("arguments", "what", "message"), USAGE[1:], ids=[what for _, what, _ in USAGE[1:]])
def test_usage(fourfold: Command, arguments: tuple[str, ...], what: str, message: str) -> None:
    said = fourfold(*arguments)
    assert said.code == 2
    assert said.line.startswith("fourfold: ") and message in said.line


def test_without_a_command_help_is_given(fourfold: Command) -> None:
    said = fourfold()
    assert said.code == 0 and "Usage: fourfold" in said.out and "hardware" in said.out


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("item", 11, "item"),
        ("branch", 11, "branch"),
        ("unknown_op", 11, "twist"),
        ("nothing", 11, "int"),
        ("absent", 2, "no function 'absent'"),
    ],
)
def test_a_model_that_cannot_be_planned(fourfold: Command, name: str, code: int, message: str) -> None:
    said = fourfold("plan", f"{MODELS}:{name}", *SMALL)
    assert said.code == code and message in said.line


def test_a_model_nobody_ships(fourfold: Command) -> None:
    said = fourfold("plan", "llama-9b", *SMALL)
    assert said.code == 2 and "did you mean" in said.line


def test_heads_that_a_pin_cannot_cut(fourfold: Command, tiny: str) -> None:
    said = fourfold(
        "plan", tiny, "--hardware", "cpu-gloo@3", "--length", "64", "--tokens-per-step", "1k", "--pin", "tp=3"
    )
    assert said.code == 2
    assert re.search(r"tp=3 cannot cut label h of layers\.\*.*: 4 heads; tp may be 1, 2 or 4", said.line), said.line


def test_a_model_too_large_for_the_machine(fourfold: Command, tiny: str) -> None:
    said = fourfold("plan", tiny, *SMALL, "--set", "width=16384", "--set", "layers=8")
    assert said.code == 10
    first, *table = said.err.splitlines()
    assert first.startswith("fourfold: Llama does not fit cpu-gloo-4 (4 ranks")
    assert any(line.startswith("  dp4") and "GiB short" in line for line in table) and "Traceback" not in said.err


def test_profiles(fourfold: Command, tiny: str, tmp_path: Path) -> None:
    said = fourfold("plan", tiny, "--hardware", "dgx-h2000")
    assert said.code == 12 and "HW107" in said.line
    torn = tmp_path / "torn.toml"
    torn.write_text('kind = "node\n')
    said = fourfold("plan", tiny, "--hardware", str(torn))
    assert said.code == 12 and "torn.toml" in said.line


def test_places_that_cannot_be_written(fourfold: Command, tiny: str, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    said = fourfold("plan", tiny, *SMALL, "--save", str(blocked / "plan.json"))
    assert said.code == 13 and "cannot be written" in said.line
    said = fourfold("run", tiny, "--hardware", "cpu-gloo-4", "--runs", str(blocked))
    assert said.code == 13 and "cannot be written" in said.line


def test_an_empty_text(fourfold: Command, tiny: str, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    said = fourfold("run", tiny, "--hardware", "cpu-gloo-4", "--data", str(tmp_path / "empty.txt"))
    assert said.code == 2 and "holds no text" in said.line


def test_a_plan_of_another_model_or_number_of_processes(fourfold: Command, tiny: str, tmp_path: Path) -> None:
    file = str(tmp_path / "plan.json")
    assert fourfold("plan", tiny, *SMALL, "--save", file).code == 0
    said = fourfold("run", tiny, "--plan", file, "--set", "width=128", "--runs", str(tmp_path))
    assert said.code == 11 and "the plan is for another model: embedding.weight is [256, 64]" in said.line
    said = fourfold("verify", f"{MODELS}:twin", "--plan", file)
    assert said.code == 11 and "the plan is for another" in said.line
    said = fourfold("run", tiny, "--plan", file, "--nproc", "3", "--runs", str(tmp_path))
    assert said.code == 13 and "the plan needs 4 processes" in said.line and "--nproc 4" in said.line
    said = fourfold("run", tiny, "--plan", file, "--hardware", "cpu-gloo-4", "--runs", str(tmp_path))
    assert said.code == 2 and "--plan says it all" in said.line


def test_torchrun_around_run(fourfold: Command, tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    said = fourfold("run", tiny, "--hardware", "cpu-gloo-4")
    assert said.code == 2 and "leave torchrun away" in said.line


def test_an_error_as_json(fourfold: Command) -> None:
    said = fourfold("show", "absent.json", "--json")
    assert said.code == 2 and said.err == ""
    error = said.data["error"]
    assert error["kind"] == "UsageError" and error["exit_code"] == 2 and "absent.json" in error["message"]


def test_a_fault_of_ours_is_written_down(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("FOURFOLD_DEBUG", raising=False)

    def wrong() -> None:
        raise ZeroDivisionError("by\nnothing")

    assert ending.ended(wrong, ["plan"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("fourfold: internal error, ZeroDivisionError: by nothing; the report is in ")
    assert told.count("\n") == 1
    report = Path(told.split("the report is in ")[1].strip())
    assert "Traceback" in report.read_text() and "wrong" in report.read_text()
    assert ending.ended(wrong, ["plan", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"), [(ModelError("no\nplan"), 11), (KeyboardInterrupt(), 130), (ValueError("x"), 1)]
)
def test_codes(capsys: pytest.CaptureFixture[str], error: BaseException, code: int) -> None:
    def command() -> None:
        raise error

    assert ending.ended(command, []) == code
    assert capsys.readouterr().err.count("\n") == 1
