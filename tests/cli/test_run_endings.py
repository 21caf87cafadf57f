"""What a run is told when it is started wrongly: checkpoints of other models, ranks that disagree, damaged files.

Ranks are real gloo processes under torchrun, each in the user's own script or in `fourfold run`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]
HERE = Path(__file__).parent
SOURCE = HERE.resolve().parents[1] / "src"
SMALL = ("--hardware", "cpu-gloo@2", "--length", "64", "--tokens-per-step", "1k")
RUN = ("--steps", "1", "--batch-tokens", "256", "--length", "32")

SCRIPT = """
import os, sys
sys.path.insert(0, {here!r})
from models import tiny
import torch
import fourfold as ff
from fourfold.compiler.cli.ending import ended

def work():
    case, file = sys.argv[1:]
    with torch.device("meta"):
        model = tiny()
    program = ff.compile(model, file)
    program.init(seed=0)
    lengths = {{"empty": [], "lengths": [4 + int(os.environ["RANK"])], "good": [4, 6]}}[case]
    program.step([[5] * length for length in lengths])

sys.stdout.flush()
os._exit(ended(work, []))
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A plan of the small model for two processes."""
    from fourfold.compiler.cli.app import run

    path = tmp_path_factory.mktemp("plans") / "plan.json"
    assert run(["plan", f"{HERE / 'models.py'}:tiny", *SMALL, "--save", str(path)]) == 0
    return str(path)


def torchrun(folder: Path, words: Sequence[str], *, ranks: int) -> tuple[str, ...]:
    """The lines starting with `fourfold:` that a script under torchrun wrote; it must fail, without a hang."""
    script = folder / "script.py"
    script.write_text(SCRIPT.format(here=str(HERE)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    answer = subprocess.run(
        [*command, str(script), *words], capture_output=True, text=True, env=environment, timeout=120
    )
    assert answer.returncode != 0
    return tuple(line for line in answer.stderr.splitlines() if line.startswith("fourfold: "))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("lengths", "rank 1 passed other lengths to step() than rank 0: every rank must pass the same global batch"),
        ("empty", "the batch is empty"),
    ],
)
def test_batches_that_no_step_can_take(file: str, tmp_path: Path, case: str, message: str) -> None:
    said = torchrun(tmp_path, (case, file), ranks=2)
    assert said and all(message in line for line in said), said


@pytest.mark.slow
def test_a_wrong_number_of_processes_prints_the_right_line(file: str, tmp_path: Path) -> None:
    said = torchrun(tmp_path, ("good", file), ranks=3)
    assert said, "no rank told"
    for line in said:
        assert "the plan needs 2 processes" in line and "3 are running" in line, line
        assert "torchrun --nproc_per_node 2 " in line and "script.py" in line, line


@pytest.mark.slow
def test_a_checkpoint_of_another_model(fourfold: Command, tiny: str, tmp_path: Path) -> None:
    words = ("--hardware", "cpu-gloo@1", *RUN, "--runs", str(tmp_path))
    assert fourfold("run", tiny, *words, "--name", "one", "--save", "--json").code == 0
    kept = str(tmp_path / "one" / "checkpoint")
    said = fourfold("run", tiny, *words, "--name", "two", "--set", "width=128", "--resume", kept)
    assert said.code == 13 and "another model" in said.line and "embedding.weight" in said.line


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_written(fourfold: Command, tiny: str, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "checkpoint").touch()
    words = ("--hardware", "cpu-gloo@1", *RUN, "--runs", str(tmp_path), "--name", "one", "--save")
    said = fourfold("run", tiny, *words)
    assert said.code == 13 and "checkpoint" in said.line and "written" in said.line


def test_plans_that_are_damaged_or_of_another_version(fourfold: Command, file: str, tmp_path: Path) -> None:
    whole = json.loads(Path(file).read_text())
    damaged = tmp_path / "damaged.json"
    for change, message in (
        ({"schema": "fourfold.plan/99"}, "is not a plan of this version (fourfold.plan/1)"),
        ({"zero": "a"}, "ZeRO stages are 0, 1, 2 and 3, not a"),
        ({"mesh": {"dp": -1}}, "degrees are at least 1"),
        ({"graph": {**whole["graph"], "blocks": {}}}, "which is no block of Llama"),
        ({"layouts": 3}, "is a damaged plan"),
    ):
        damaged.write_text(json.dumps({**whole, **change}))
        said = fourfold("show", str(damaged))
        assert said.code == 2 and message in said.line, said
    for text in (b"{", b"\xff"):
        damaged.write_bytes(text)
        assert (said := fourfold("show", str(damaged))).code == 2 and "plan" in said.line


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "holds no lengths"),
        (b"length\n", "holds no lengths"),
        (b"12\nabc\n", "lengths.csv:2 holds 'abc'"),
        (b"0\n", "lengths.csv:1 holds '0'"),
        (b"-3\n", "lengths.csv:1 holds '-3'"),
        (b"\xff\xfe", "is no text"),
        (b"2048\n", "1,024 tokens a step hold no sequence"),
    ],
)
def test_files_that_hold_no_lengths(fourfold: Command, tmp_path: Path, text: bytes, message: str) -> None:
    path = tmp_path / "lengths.csv"
    path.write_bytes(text)
    words = ("--hardware", "cpu-gloo-4", "--tokens-per-step", "1k", "--lengths", str(path))
    said = fourfold("plan", "llama-1b", *words)
    assert said.code == 2 and message in said.line


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--length", "0"), 2, "--length '0' is not a number of tokens"),
        (("--length", "abc"), 2, "--length 'abc' is not a number of tokens"),
        (("--length", ""), 2, "--length '' is not a number of tokens"),
        (("--tokens-per-step", "0"), 2, "--tokens-per-step '0' is not a number of tokens"),
        (("--pin", "tp=x"), 2, "pin tp=x: give a whole number"),
        (("--pin", "foo=2"), 2, "pin 'foo' matches no op; pin one of dp, tp"),
        (("--set", "layers=x"), 2, "layers=x is no size"),
        (("--set", "layers=0"), 2, "layers=0 is no size"),
        (("--hardware", "dgx-h200:999999999"), 12, "999999999 nodes are too many"),
        (("--hardware", "cpu-glo"), 12, "did you mean 'cpu-gloo'"),
    ],
)
def test_values_that_cannot_be(fourfold: Command, words: tuple[str, ...], code: int, message: str) -> None:
    machine = () if words[0] == "--hardware" else ("--hardware", "cpu-gloo-4")
    said = fourfold("plan", "llama-1b", *machine, "--set", "heads=32", *words)
    assert said.code == code and message in said.line


def test_a_model_file_that_is_no_python_or_not_there(fourfold: Command, tmp_path: Path) -> None:
    torn = tmp_path / "torn.py"
    torn.write_text("x = [\n")
    said = fourfold("plan", f"{torn}:make", *SMALL)
    assert said.code == 11 and "failed at torn.py:1: SyntaxError" in said.line
    said = fourfold("plan", f"{tmp_path / 'absent.py'}:make", *SMALL)
    assert said.code == 2 and "is not a file" in said.line


def test_an_unknown_op_is_named_in_the_notes(fourfold: Command, tmp_path: Path) -> None:
    model = tmp_path / "odd.py"
    model.write_text(
        "import torch\nfrom torch import nn\nclass Odd(nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        self.first, self.last = nn.Embedding(256, 32), nn.Linear(32, 256)\n"
        "    def forward(self, tokens):\n        return self.last(torch.cumsum(self.first(tokens), -1))\n"
    )
    said = fourfold("plan", f"{model}:Odd", *SMALL)
    assert said.code == 0 and "cumsum.default in the model has no rule: computed whole" in " ".join(said.out.split())
