"""A script on the processes of its plan: the lines of one host and of several, and a real start."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fourfold.compiler.cli.launch import Hosts

Command = Callable[..., Any]
SCRIPT = """
import os, pathlib, sys
pathlib.Path(sys.argv[1], os.environ["RANK"] + "-of-" + os.environ["WORLD_SIZE"]).touch()
sys.exit(int(sys.argv[2]))
"""


def planned(fourfold: Command, tiny: str, folder: Path, hardware: str, *pins: str) -> str:
    file = str(folder / "plan.json")
    words = ("--hardware", hardware, "--length", "64", "--tokens-per-step", "1k", "--save", file)
    assert fourfold("plan", tiny, *words, *pins).code == 0
    return file


def test_one_host(fourfold: Command, tiny: str, tmp_path: Path) -> None:
    file, script = planned(fourfold, tiny, tmp_path, "cpu-gloo@2"), tmp_path / "train.py"
    said = fourfold("launch", file, "my train.py", "--print", "--", "--lr", "1")
    assert said.out == "torchrun --standalone --nproc_per_node 2 'my train.py' --lr 1\n"
    said = fourfold("launch", file, str(script))
    assert said.code == 2 and "is not a file" in said.line
    script.write_text(SCRIPT)
    assert fourfold("launch", file, str(script), str(tmp_path), "0").code == 0
    assert {path.name for path in tmp_path.glob("*-of-*")} == {"0-of-2", "1-of-2"}
    said = fourfold("launch", file, str(script), str(tmp_path), "3")
    assert said.code == 13 and "train.py ended with code" in said.err.splitlines()[-1]


def test_several_hosts(fourfold: Command, tiny: str, tmp_path: Path) -> None:
    file = planned(fourfold, tiny, tmp_path, "dgx-h200:2", "--pin", "dp=16")
    said = fourfold("launch", file, "train.py", "--head", "first:123", "--json")
    assert (said.data["hosts"], said.data["processes"]) == (2, 8)
    first, second = (" ".join(words) for words in said.data["lines"])
    assert first == (
        "torchrun --nnodes 2 --node_rank 0 --nproc_per_node 8 --master_addr first --master_port 123 train.py"
    )
    assert second == first.replace("node_rank 0", "node_rank 1")
    said = fourfold("launch", file, "train.py")
    assert said.code == 2 and "2 hosts of 8 processes: say --host 0 to 1 and --head HOST" in said.line
    said = fourfold("launch", file, "train.py", "--head", "first", "--host", "2")
    assert said.code == 2 and "numbered from 0 to 1" in said.line


@pytest.mark.parametrize(("head", "words"), [("", "HOST-0 --master_port 29500"), ("a", "a --master_port 29500")])
def test_where_they_meet(head: str, words: str) -> None:
    assert words in " ".join(Hosts(3, 4, head).words("train.py", (), 1))
