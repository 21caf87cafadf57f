"""The examples of docs/hardware.md are profiles that check clean."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from fourfold.hardware import check_file, load

PAGE = Path(__file__).resolve().parents[2] / "docs" / "hardware.md"
EXAMPLES = re.findall(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example(folder: Path, number: int) -> None:
    mine = folder / "fourfold-hardware"
    mine.mkdir()
    (mine / "lab.toml").write_text(EXAMPLES[0], encoding="utf-8")  # what the others build on
    path = mine / f"{tomllib.loads(EXAMPLES[number])['name']}.toml"
    path.write_text(EXAMPLES[number], encoding="utf-8")
    assert [str(one) for one in check_file(path)] == []
    machine = load("lab:2")
    crossing = machine.crossing((0, 8)).inter
    assert crossing is not None and crossing.bandwidth == 12.5e9  # two devices a port


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == 3
