"""Sequences of tokens in a folder, mapped into memory: a batch of them is read by piece, each rank its own."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fourfold.hardware.errors import RunError, UsageError

SCHEMA = "fourfold.tokens/1"
TYPES = ("uint8", "uint16", "uint32")
"""What a token may be stored as."""


@dataclass(frozen=True, slots=True)
class TokenFile:
    """tokens.bin (all sequences, one after another), offsets.bin (int64: where each begins, and the end), index.json.

    digest: of the tokens, taken as they were written. Little-endian, as every machine that trains is.
    """

    folder: Path
    digest: str
    tokens: np.ndarray = field(repr=False)
    offsets: np.ndarray = field(repr=False)

    @classmethod
    def open(cls, folder: str | Path) -> TokenFile:
        """What `write` wrote; nothing is read yet but the index. Raises UsageError."""
        path = Path(folder)
        try:
            index = json.loads((path / "index.json").read_text(encoding="utf-8"))
            if index["schema"] != SCHEMA or index["dtype"] not in TYPES:
                raise ValueError(f"its schema is not {SCHEMA}")
            tokens = np.memmap(path / "tokens.bin", index["dtype"], mode="r")
            offsets = np.memmap(path / "offsets.bin", "int64", mode="r")
            if len(offsets) != index["sequences"] + 1 or len(tokens) != offsets[-1]:
                raise ValueError(f"it holds {len(tokens)} tokens of {index['sequences']} sequences")
            return cls(path, str(index["digest"]), tokens, offsets)
        except (OSError, LookupError, TypeError, ValueError) as error:
            raise UsageError(f"{path} is no folder of tokens: {error}; write it with TokenFile.write") from None

    @classmethod
    def write(
        cls,
        folder: str | Path,
        sequences: Iterable[Sequence[int]],
        *,
        dtype: str = "uint32",
        longest: int | None = None,
    ) -> TokenFile:
        """Writes sequences as they come, cut after every `longest` tokens; empty ones are left out.

        The index comes last: a folder without one is not whole. Raises UsageError for a token that `dtype` does not
        hold and for no tokens at all, RunError when the folder cannot be written.
        """
        path, offsets, digest = Path(folder), array("q", [0]), hashlib.sha256()
        if dtype not in TYPES:
            raise UsageError(f"tokens cannot be stored as {dtype!r}; give one of {', '.join(TYPES)}")
        try:
            path.mkdir(parents=True, exist_ok=True)
            (path / "index.json").unlink(missing_ok=True)
            with (path / "tokens.bin").open("wb") as file:
                for row in _rows(sequences, dtype, longest):
                    file.write(row.tobytes())
                    digest.update(row.tobytes())
                    offsets.append(offsets[-1] + len(row))
            if len(offsets) == 1:
                raise UsageError(f"{path} would hold no token: give at least one sequence of at least one")
            (path / "offsets.bin").write_bytes(offsets.tobytes())
            index = {"schema": SCHEMA, "dtype": dtype, "sequences": len(offsets) - 1, "digest": digest.hexdigest()}
            (path / "index.json").write_text(json.dumps(index) + "\n", encoding="utf-8")
        except OSError as error:
            raise RunError(f"tokens cannot be written to {path}: {error.strerror}") from None
        return cls.open(path)

    def __len__(self) -> int:
        """Sequences."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Of all sequences."""
        return np.diff(self.offsets)

    def batch(self, sequences: Iterable[int]) -> TokenBatch:
        """These sequences as a global batch for `step`. Raises UsageError for one that is not there."""
        chosen = tuple(int(one) for one in sequences)
        for one in chosen:
            if not 0 <= one < len(self):
                raise UsageError(f"there is no sequence {one} in {self.folder}: it holds 0 to {len(self) - 1}")
        lengths = tuple(int(self.offsets[one + 1] - self.offsets[one]) for one in chosen)
        return TokenBatch(self, chosen, lengths)


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Some sequences of a file, as a Source: the tokens are their own labels."""

    file: TokenFile
    sequences: tuple[int, ...]
    lengths: tuple[int, ...]

    @property
    def identity(self) -> str:
        """The file's digest, and which of its sequences."""
        return f"{self.file.digest} {self.sequences}"

    def read(self, sequence: int, start: int, stop: int) -> Tensor:
        """These tokens; what else the pages of the file hold is the system's affair."""
        first = int(self.file.offsets[self.sequences[sequence]])
        return torch.from_numpy(self.file.tokens[first + start : first + stop].astype(np.int64))


def _rows(sequences: Iterable[Any], dtype: str, longest: int | None) -> Iterator[np.ndarray]:
    """Each sequence, or each cut of it, as it is stored."""
    most = np.iinfo(dtype).max
    for number, sequence in enumerate(sequences):
        row = np.asarray(sequence)
        if row.ndim != 1 or (row.size and row.dtype.kind not in "iu"):
            raise UsageError(f"sequence {number} is no row of whole numbers: {row.dtype} of shape {row.shape}")
        if row.size and not 0 <= int(row.min()) <= int(row.max()) <= most:
            raise UsageError(f"sequence {number} has tokens from {row.min()} to {row.max()}: {dtype} holds 0 to {most}")
        step = longest or max(1, len(row))
        for start in range(0, len(row), step):
            yield row[start : start + step].astype(dtype)
