"""batch: policies compared on one batch, what is said of a sequence, and what cannot be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fourfold.ir.batch import BatchPlan

Command = Callable[..., Any]


@pytest.fixture
def lengths(tmp_path: Path) -> str:
    """Twelve short sequences and one long one."""
    path = tmp_path / "lengths.csv"
    path.write_text("\n".join(map(str, [*range(20, 140, 10), 900])))
    return str(path)


def test_policies_side_by_side(fourfold: Command, tiny: str, lengths: str, tmp_path: Path) -> None:
    given = (lengths, "--model", tiny, "--hardware", "cpu-gloo-4", "--tokens-per-step", "2k", "--pin", "dp=4")
    said = fourfold("batch", *given, "--save", str(tmp_path / "batch.json"))
    assert said.code == 0, said.err
    assert all(line in said.out for line in ("Policies, the fastest first", "  auto ", "  pack ", "The fastest, auto"))
    batch = BatchPlan.read((tmp_path / "batch.json").read_text())
    assert batch.ranks == 4 and batch.lengths[-1] == 900
    data = fourfold("batch", *given, "--json").data
    steps = [row["step"] for row in data["policies"]]
    assert steps == sorted(steps) and data["policies"][0]["policy"] == "auto"
    assert all(row["gap"] >= 0 and 0 < row["balance"] <= 1 for row in data["policies"])
    last = len(batch.lengths) - 1
    said = fourfold("batch", *given, "--policy", "pack", "--explain", str(last))
    assert f"Sequence {last}, 900 tokens, by pack" in said.out and f"{last}[0:900] in micro-step 0" in said.out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--pin", "dp=4", "--policy", "best"), 2, "policy 'best' is not known; give one of pack, "),
        (("--pin", "dp=4", "--explain", "99"), 2, "--explain 99: the batch has sequences 0 to "),
        (("--pin", "sp=4", "--pin", "capacity=256", "--policy", "pack"), 10, "pack cannot place sequence "),
    ],
)
def test_what_cannot_be_is_said(
    fourfold: Command, tiny: str, lengths: str, words: tuple[str, ...], code: int, message: str
) -> None:
    said = fourfold("batch", lengths, "--model", tiny, "--hardware", "cpu-gloo-4", "--tokens-per-step", "2k", *words)
    assert said.code == code and message in said.line
