"""run through real torchrun: figures, files, and what is told when a rank fails; the demo (slow)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fourfold.compiler.cli import values
from fourfold.compiler.cli.launching import failure
from fourfold.compiler.cli.proving import ranks_of
from fourfold.hardware.errors import ModelError, RunError

Command = Callable[..., Any]


def test_a_run_trains_and_says_how_it_went(fourfold: Command, tiny: str, tmp_path: Path) -> None:
    words = ("--nproc", "2", "--hardware", "cpu-gloo", "--steps", "8", "--batch-tokens", "512", "--length", "64")
    said = fourfold(
        "run", tiny, *words, "--runs", str(tmp_path), "--name", "one", "--sample", "The ", "--save", "--json"
    )
    assert said.code == 0, said.out + (tmp_path / "one" / "log.txt").read_text()
    rows = [json.loads(line) for line in (tmp_path / "one" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(8))
    assert all(row["predicted"] > 0 and row["seconds"] > 0 and row["tokens"] <= 512 for row in rows)
    assert rows[-1]["loss"] < rows[0]["loss"]
    data = said.data
    assert data["schema"] == "fourfold.summary/1" and data["steps"] == 8 and data["compiled"] == 0
    assert data["sample"].startswith("The ") and (tmp_path / "one" / "plan.json").exists()


def test_a_failing_rank_is_one_line_and_13(fourfold: Command, tiny: str, tmp_path: Path) -> None:
    words = (
        "--nproc",
        "2",
        "--hardware",
        "cpu-gloo",
        "--batch-tokens",
        "512",
        "--runs",
        str(tmp_path),
        "--name",
        "bad",
    )
    said = fourfold("run", tiny, *words, "--resume", str(tmp_path / "nowhere"))
    assert said.code == 13 and "nowhere" in said.line


def test_verify_proves_a_plan(fourfold: Command, tiny: str) -> None:
    said = fourfold("verify", tiny, "--pin", "tp=2", "--steps", "1", "--json")
    assert said.code == 0, said.out
    data = said.data
    assert data["passed"] and data["ranks"] == 2 and data["worst"]["error"] < 1e-4
    names = {check["name"] for check in data["checks"] if check["kind"] == "gradient"}
    assert {"embedding.weight", "layers.1.attention.q.weight", "head.weight"} <= names


@pytest.mark.parametrize(
    ("pins", "ranks"),
    [((), 4), (("pp=2",), 2), (("sp=3",), 3), (("dp=2", "tp=2", "pp=2"), 8), (("zero=3",), 4), (("dp=1",), 1)],
)
def test_verify_runs_as_many_ranks_as_the_pinned_degrees_ask_for(pins: tuple[str, ...], ranks: int) -> None:
    assert ranks_of(values.pins(pins)) == ranks


def test_verify_proves_a_placement(fourfold: Command, tiny: str) -> None:
    """Pins of every axis count as ranks; the policy cuts documents into chunks, which go through both stages."""
    words = ("--pin", "dp=2", "--pin", "pp=2", "--policy", "chunkflow", "--steps", "1", "--json")
    said = fourfold("verify", tiny, *words)
    assert said.code == 0, said.out
    data = said.data
    assert data["passed"] and data["ranks"] == 4
    assert data["placed"]["policy"] == "chunkflow" and data["placed"]["chunks"] > 2
    unknown = fourfold("verify", tiny, "--pin", "dp=2", "--policy", "fastest")
    assert unknown.code == 2 and "policy 'fastest' is not known; give one of pack" in unknown.line


def test_verify_that_fails_is_13(fourfold: Command, tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from fourfold.compiler import verify

    report = verify.Report("m", "dp2", 2, "float32", (3,), 1, (verify.Check("gradient", "w", 1.0, 1e-4),), 0.1)
    monkeypatch.setattr(verify, "verify", lambda *_, **__: report)
    said = fourfold("verify", tiny, "--nproc", "1")
    assert said.code == 13 and "FAILED in 1 of 1 checks" in said.out


def _errors(folder: Path, *rows: dict[str, Any]) -> Path:
    (folder / "errors").mkdir()
    (folder / "log.txt").write_text("first\nlast words\n")
    for row in rows:
        (folder / "errors" / f"rank{row['rank']}.json").write_text(json.dumps(row))
    return folder


def test_the_rank_that_knows_why_is_heard(tmp_path: Path) -> None:
    lost = {"rank": 0, "kind": "RuntimeError", "message": "connection closed by peer", "time": 1.0}
    knows = {"rank": 1, "kind": "ModelError", "message": "the plan is for another model", "time": 2.0}
    found = failure(_errors(tmp_path, lost, knows), 1)
    assert isinstance(found, ModelError) and str(found) == "the plan is for another model"


def test_an_error_without_a_name_tells_where_to_look(tmp_path: Path) -> None:
    found = failure(_errors(tmp_path, {"rank": 3, "kind": "KeyError", "message": "'x'", "time": 1.0}), 1)
    assert isinstance(found, RunError) and "rank 3 failed: KeyError: 'x'" in str(found) and "log.txt" in str(found)


def test_a_rank_that_died_leaves_its_last_words(tmp_path: Path) -> None:
    found = failure(_errors(tmp_path), -9)
    assert isinstance(found, RunError) and "last words" in str(found) and "-9" in str(found)


STOPPED = """
import sys, time
from fourfold.compiler.cli.launching import _started
with open(sys.argv[1], "w") as log, _started(["sleep", "600"], log) as process:
    print(process.pid, flush=True)
    for _ in range(6000):  # one long sleep would miss a signal that comes just before it
        time.sleep(0.1)
"""


def test_a_run_that_is_told_to_end_leaves_no_process(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2] / "src")}
    words = [sys.executable, "-c", STOPPED, str(tmp_path / "log.txt")]
    parent = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    os.kill(child, 0)
    parent.terminate()
    assert parent.wait(60) != 0
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


@pytest.mark.slow
def test_the_demo(process: Command, tmp_path: Path) -> None:
    said = process("demo", "--json", "--runs", str(tmp_path))
    assert said.code == 0, said.err
    data = said.data
    assert max(run["last"] for run in data["runs"]) < data["unigram"] == pytest.approx(3.26, abs=0.05)
    assert data["runs"][1]["plan"] == "dp2 x tp2" and data["runs"][0]["sample"].startswith("The ")
    assert data["runs"][0]["last"] == pytest.approx(data["runs"][1]["last"], rel=0.02)
