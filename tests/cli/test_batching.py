"""batch: policies compared on one batch, what is said of a sequence, and what cannot be."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from fourfold.compiler.cli import explaining, policies
from fourfold.hardware import load
from fourfold.ir.batch import BatchPlan, Move, Offload, Piece
from fourfold.ir.batch_rules import Bounds
from fourfold.ir.text import plain
from fourfold.passes.batch.showing.charting import charted
from fourfold.passes.batch.showing.compare import Compared
from fourfold.passes.batch.showing.explain import explained
from fourfold.passes.batch.timing.terms import Layer, Terms
from fourfold.passes.batch.timing.timing import timed
from fourfold.passes.sequence.tables import Heads

Command = Callable[..., Any]
Golden = Callable[..., None]
SMALL = ("--hardware", "cpu-gloo-4", "--tokens-per-step", "2k", "--pin", "dp=4")


@pytest.fixture
def lengths(tmp_path: Path) -> str:
    """Twelve short sequences and one long one."""
    path = tmp_path / "lengths.csv"
    path.write_text("\n".join(map(str, [*range(20, 140, 10), 900])))
    return str(path)


def test_policies_side_by_side(fourfold: Command, tiny: str, lengths: str, tmp_path: Path) -> None:
    given, files = (lengths, "--model", tiny, *SMALL), [str(tmp_path / name) for name in ("batch.json", "batch.svg")]
    said = fourfold("batch", *given, "--save", files[0], "--svg", files[1])
    assert said.code == 0, said.err
    assert max(map(len, said.out.splitlines())) <= 80 and "\x1b" not in said.out
    assert all(line in said.out for line in ("Policies, the fastest first", " auto ", " pack ", "The fastest, auto"))
    assert re.search(r"^  rank 3 .*A{4}", said.out, re.MULTILINE)
    batch = BatchPlan.read(Path(files[0]).read_text())
    assert batch.ranks == 4 and batch.lengths[-1] == 900
    assert ElementTree.parse(files[1]).getroot().tag.endswith("svg")
    data = fourfold("batch", *given, "--json").data
    steps = [row["step"] for row in data["policies"]]
    assert steps == sorted(steps) and data["policies"][0]["policy"] == "auto"
    assert all(row["gap"] >= 0 and 0 < row["balance"] <= 1 for row in data["policies"])


def test_the_comparison_as_json(fourfold: Command, tiny: str, lengths: str) -> None:
    words = ("--policy", "auto", "--policy", "pack", "--pin", "sp=4", "--pin", "capacity=256", "--explain", "14")
    data = fourfold("batch", lengths, "--model", tiny, *SMALL[:-2], *words, "--json").data
    assert list(data) == ["schema", "workload", "plan", "bound", "policies", "explained"]
    assert data["schema"] == "fourfold.policies/1" and data["bound"]["by"] in ("area", "longest")
    assert data["bound"]["seconds"] == max(data["bound"]["area"], data["bound"]["longest"])
    auto, pack = data["policies"]
    figures = ("step", "bound", "gap", "balance", "micro_steps", "sent", "fullest", "room_used", "pieces")
    assert list(auto) == ["policy", "solving", *figures] and list(pack) == ["policy", "solving", "refused"]
    assert auto["sent"]["in_node"] > 0 == auto["sent"]["across"] and 0 < auto["room_used"] <= 1
    told = data["explained"]
    assert told["length"] == 900 and len(told["runs"][0]["piece"]["ranks"]) > 1 and told["policy"] == "auto"
    assert told["zone"] in ("local", "intra", "inter") and not told["options"][0]["room"]
    assert set(told["options"][0]["seconds"]) == {"whole"}


def test_one_sequence_explained(fourfold: Command, tiny: str, lengths: str) -> None:
    said = fourfold("batch", lengths, "--model", tiny, *SMALL, "--policy", "pack", "--explain", "14")
    assert said.code == 0 and max(map(len, said.out.splitlines())) <= 80
    assert "Sequence 14, 900 tokens, by pack" in said.out and "14[0:900] in micro-step 0, whole on rank" in said.out


def test_wide_figures_stay_within_the_line(golden: Golden) -> None:
    """The table, the placement and a sequence, of placements by hand that have all there is."""
    found, terms = by_hand()
    out = StringIO()
    console = Console(file=out, width=80, highlight=False)
    console.print(policies.table(found, terms))
    batch = found[0].batch
    assert batch is not None
    for line in policies.painted(charted(batch, terms), 80):
        console.print(line, soft_wrap=True)
    told = explained(batch, terms, 5)
    written = "\n".join((out.getvalue(), policies.bound(found, terms), plain(explaining.sections(told, found))))
    golden("\n".join(line.rstrip() for line in written.splitlines()))
    assert max(map(len, written.splitlines()[:-4])) <= 80


def test_room_is_what_stays_on_the_device() -> None:
    pieces = (Piece(0, 0, 90, 0, (0,)), Piece(1, 0, 60, 1, (0,)), Piece(2, 0, 50, 0, (1,)))
    batch = BatchPlan("by hand", (90, 60, 50), 2, 80, pieces, offloads=(Offload(0, 0, 0.5),))
    assert policies.room_used(batch) == 60 / 80


def by_hand() -> tuple[Sequence[Compared], Terms]:
    """Placements of six sequences on four ranks of two nodes: one with chunks, a remap and offloading."""
    layer = Layer(Heads(32, 8, 128, "bfloat16", causal=True), 32, 2.0)
    bounds, machine = Bounds(4, 2**20, 1, 32), load("dgx-h200:2")
    terms = Terms(machine, bounds, 1, 2, 1e-3, 1e-6, 1e-2, (layer,), "float32", kept=1e4, host=1e10)
    lengths = (2**20, 2**19, 5000, 2500, 1000, 2**20)
    pieces = (
        Piece(0, 0, 2**20, 0, (0, 1, 2, 3), "ring"),
        Piece(1, 0, 2**19, 0, (0, 1), "ulysses"),
        *(Piece(i, 0, lengths[i], 1 if i > 2 else 0, (2,)) for i in (2, 3, 4)),
        Piece(5, 0, 2**19, 1, (0, 1), "gather_kv"),
        Piece(5, 2**19, 2**20, 2, (0, 1), "gather_kv"),
    )
    extras = {"moves": (Move(1, 0, 2, 100),), "offloads": (Offload(1, 1, 0.25),)}
    whole = (*pieces[:5], Piece(5, 0, 2**20, 1, (0, 1, 2, 3), "ring"))
    batches = (
        BatchPlan("homogeneous", lengths, 4, 2**20, pieces, **extras),  # type: ignore[arg-type]
        BatchPlan("ring", lengths, 4, 2**20, whole),
    )
    found = [Compared(batch.policy, batch, timed(batch, terms), 0.0123) for batch in batches]
    return [*found, Compared("pack", None, None, 0.0, "pack cannot place sequence 0 of 1,048,576 tokens")], terms


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--pin", "dp=4", "--policy", "best"), 2, "policy 'best' is not known; give one of pack, "),
        (("--pin", "dp=4", "--explain", "99"), 2, "--explain 99: the batch has sequences 0 to 14"),
        (("--pin", "dp=4", "--explain", "-1"), 2, "--explain -1: the batch has sequences 0 to 14"),
        (
            ("--pin", "dp=4", "--policy", "pack", "--svg", "nowhere/batch.svg"),
            13,
            "nowhere/batch.svg cannot be written",
        ),
        (("--pin", "sp=4", "--pin", "capacity=256", "--policy", "pack"), 10, "pack cannot place sequence "),
    ],
)
def test_what_cannot_be_is_said(
    fourfold: Command, tiny: str, lengths: str, words: tuple[str, ...], code: int, message: str
) -> None:
    said = fourfold("batch", lengths, "--model", tiny, "--hardware", "cpu-gloo-4", "--tokens-per-step", "2k", *words)
    assert said.code == code and message in said.line
