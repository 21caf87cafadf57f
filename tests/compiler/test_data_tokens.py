"""Tokens in a folder: what is written is read back, by piece and by whole, and a folder that is none is said."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold.backends.batch import lazy
from fourfold.backends.batch.placing import turns
from fourfold.backends.batch.sequences import Limits
from fourfold.backends.communication.aside import Aside
from fourfold.backends.communication.processes import run
from fourfold.compiler.data import TokenFile
from fourfold.hardware.errors import RunError, UsageError
from fourfold.ir.batch import BatchPlan, Piece

SEQUENCES = [[5, 6, 7], [1], [250, 0, 3, 4, 9]]


@settings(max_examples=25, deadline=None)
@given(
    sequences=st.lists(st.lists(st.integers(0, 255), max_size=9), min_size=1).filter(any),
    longest=st.none() | st.integers(1, 4),
    dtype=st.sampled_from(("uint8", "uint16", "uint32")),
)
def test_what_is_written_is_read(
    sequences: list[list[int]], longest: int | None, dtype: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("tokens")
    file = TokenFile.write(folder, iter(sequences), dtype=dtype, longest=longest)
    cut = [one[a : a + (longest or 9)] for one in sequences for a in range(0, len(one), longest or 9)]
    for found in (file, TokenFile.open(folder)):
        assert found.lengths.tolist() == [len(one) for one in cut] and len(found) == len(cut)
        batch = found.batch(reversed(range(len(cut))))
        assert [batch.read(i, 0, length).tolist() for i, length in enumerate(batch.lengths)] == cut[::-1]
    assert (folder / "tokens.bin").stat().st_size == sum(map(len, sequences)) * np.dtype(dtype).itemsize


def test_pieces_and_identity(tmp_path: Path) -> None:
    file = TokenFile.write(tmp_path / "a", [np.array(one, np.int32) for one in SEQUENCES], dtype="uint8")
    batch = file.batch((2, 0))
    assert lazy.is_source(batch) and batch.lengths == (5, 3) and lazy.supervised(batch) == 6.0
    assert batch.read(0, 1, 3).tolist() == [0, 3] and batch.read(0, 1, 3).dtype == torch.int64
    same = TokenFile.write(tmp_path / "b", SEQUENCES, dtype="uint8").batch((2, 0))
    other = TokenFile.write(tmp_path / "c", [*SEQUENCES[:2], [250, 0, 3, 4, 8]], dtype="uint8").batch((2, 0))
    assert batch.identity == same.identity
    assert len({batch.identity, other.identity, file.batch((0, 2)).identity}) == 3


def reading(rank: int, folder: Path) -> tuple[list[list[int]], int]:
    """Each rank opens the file for itself; what it read, and how many tokens."""
    file, aside, asked = TokenFile.open(folder), Aside.here(), 0
    batch = file.batch((2, 0, 1))

    class Counted:
        lengths, identity = batch.lengths, batch.identity

        def read(self, sequence: int, start: int, stop: int) -> Any:
            nonlocal asked
            asked += stop - start
            return batch.read(sequence, start, stop)

    lengths = lazy.agreed_lengths(Counted(), Limits(), aside)
    pieces = (Piece(0, 0, 5, 0, (0,)), Piece(1, 0, 3, 0, (1,)), Piece(2, 0, 1, 0, (1,)))
    placed = BatchPlan("by hand", lengths, 2, 8, pieces)
    parts = lazy.parts(Counted(), lazy.spans_of(turns(placed, rank, every=False)), Limits(), aside)
    return [part.tokens[0 : len(part)].tolist() for part in parts.values()], asked


def test_ranks_read_their_own(tmp_path: Path) -> None:
    TokenFile.write(tmp_path, SEQUENCES, dtype="uint8")
    assert run(partial(reading, folder=tmp_path), 2, timeout=60) == (
        ([SEQUENCES[2]], 5),
        ([SEQUENCES[0], SEQUENCES[1]], 4),
    )


@pytest.mark.parametrize(
    ("sequences", "says"),
    [
        ([[1], [256]], "sequence 1 has tokens from 256 to 256: uint8 holds 0 to 255"),
        ([[-1, 2]], "sequence 0 has tokens from -1 to 2"),
        ([[0.5]], "sequence 0 is no row of whole numbers: float64"),
        ([[[1, 2]]], "sequence 0 is no row of whole numbers"),
        ([[], []], "would hold no token"),
    ],
)
def test_what_cannot_be_stored_is_said(sequences: list[Any], says: str, tmp_path: Path) -> None:
    TokenFile.write(tmp_path, SEQUENCES, dtype="uint8")
    with pytest.raises(UsageError, match=says):
        TokenFile.write(tmp_path, sequences, dtype="uint8")
    with pytest.raises(UsageError, match="is no folder of tokens"):
        TokenFile.open(tmp_path)


def test_a_folder_that_is_none_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is no folder of tokens: .*index.json"):
        TokenFile.open(tmp_path)
    file = TokenFile.write(tmp_path, SEQUENCES)
    with pytest.raises(UsageError, match=r"there is no sequence 3 in .*: it holds 0 to 2"):
        file.batch([3])
    with pytest.raises(UsageError, match="tokens cannot be stored as 'int64'"):
        TokenFile.write(tmp_path, SEQUENCES, dtype="int64")
    index = json.loads((tmp_path / "index.json").read_text())
    for damage in ({"sequences": 4}, {"schema": "fourfold.tokens/9"}, {"dtype": "uint64"}, {"dtype": "uint16"}):
        (tmp_path / "index.json").write_text(json.dumps(index | damage))
        with pytest.raises(UsageError, match="is no folder of tokens"):
            TokenFile.open(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be written"):
        TokenFile.write(tmp_path / "file", SEQUENCES)
