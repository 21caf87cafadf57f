"""The index of a checkpoint: one small JSON file that says what a folder holds, and is replaced at once."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from fourfold.hardware.errors import RunError, UsageError
from fourfold.ir.graph import Graph
from fourfold.ir.serial import from_plain

SCHEMA = "fourfold.checkpoint/2"
INDEX = "checkpoint.json"
DATA = re.compile(r"step-\d{8}-[0-9a-f]{8}")
SHOWN = 3
"""Differences an error lists."""


@dataclass(frozen=True, slots=True)
class Position:
    """Where a training run stands: optimizer steps, and sequences and tokens of data; and the seed it began with."""

    steps: int = 0
    sequences: int = 0
    tokens: int = 0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Index:
    """What checkpoint.json says: the data folder, whose it is, and the shape of each of the model's tensors.

    `computation` is a digest of what the model computes, whatever its precision.
    """

    data: str
    model: str
    fingerprint: str
    computation: str
    plan: str
    ranks: int
    position: Position
    versions: Mapping[str, str]
    optimizers: Mapping[str, str]
    stateful: tuple[str, ...]
    tensors: Mapping[str, tuple[int, ...]]
    schema: str


def read(folder: Path) -> str:
    """The text of the index. Raises RunError when there is none."""
    try:
        return (folder / INDEX).read_text(encoding="utf-8")
    except FileNotFoundError:
        inside = sorted(p.parent.name for p in folder.glob(f"*/{INDEX}"))
        hint = f"; there is one in each of {', '.join(inside[-SHOWN:])} there" if inside else ""
        raise RunError(f"{folder} holds no checkpoint: it has no {INDEX}{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"checkpoint {folder} cannot be read: {INDEX}: {error}") from None


def parsed(text: str, folder: Path) -> Index:
    """The index that `text` says. Raises RunError when it is damaged or of another version."""
    try:
        data = json.loads(text)
        schema = data["schema"]
    except (ValueError, TypeError, KeyError):
        raise RunError(f"checkpoint {folder} is damaged: {INDEX} is no index") from None
    if schema != SCHEMA:
        raise RunError(f"checkpoint {folder} is of another version: {schema!r}, and this one reads {SCHEMA!r}")
    try:
        return from_plain(Index, data)
    except (UsageError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise RunError(f"checkpoint {folder} is damaged: {INDEX}: {error}") from None


def check(index: Index, tensors: Mapping[str, tuple[int, ...]], folder: Path) -> None:
    """Raises RunError when the checkpoint is of a model with other `tensors` (shapes by name)."""
    there = index.tensors
    other = [n for n in {**tensors, **there} if tensors.get(n) != there.get(n)]
    if other:
        shown = [_difference(n, tensors.get(n), there.get(n)) for n in other[:SHOWN]]
        raise RunError(
            f"checkpoint {folder} is of another model ({index.model}, fingerprint {index.fingerprint}); it differs in "
            f"{len(other)} of {len(there)} tensors: {'; '.join(shown)}{'; ...' if len(other) > SHOWN else ''}"
        )


def require(index: Index, asked: Iterable[str], folder: Path) -> None:
    """Raises RunError when the checkpoint lacks an optimizer or another state that is asked for."""
    held = (*index.optimizers, *index.stateful)
    for name in asked:
        if name not in held:
            raise RunError(f"checkpoint {folder} holds no {name}: beside weights it has {', '.join(held) or 'nothing'}")


def computation(graph: Graph) -> str:
    """A digest of the ops, their shapes and settings: the same for every precision, and for frozen parameters."""
    steps = [
        [
            (n.op.split(".")[0], n.value.shape, [kv for kv in n.kwargs if kv[0] != "dtype"])
            for n in block.nodes
            if n.op != "cast"
        ]
        for block in (graph.blocks[call.block] for call in graph.calls)
    ]
    return hashlib.sha256(repr(steps).encode()).hexdigest()[:16]


def doubt(index: Index, computes: str, folder: Path) -> str | None:
    """What to say when a model of the same tensors computes otherwise than the one the checkpoint is of."""
    if index.computation == computes:
        return None
    return (
        f"checkpoint {folder} fits this model's tensors, but was saved by a model that computes otherwise (another "
        "number of heads, another scale, another activation?) or another torch: see that its loss is the same"
    )


def _difference(name: str, here: tuple[int, ...] | None, there: tuple[int, ...] | None) -> str:
    mine, saved = (str(list(s)) if s is not None else "absent" for s in (here, there))
    return f"{name} is {mine} here and {saved} in the checkpoint"


def publish(folder: Path, text: str) -> None:
    """Makes the new checkpoint the folder's, then removes what it replaces."""
    scratch = folder / f"{INDEX}.tmp"
    with scratch.open("w", encoding="utf-8") as file:
        file.write(text + "\n")
        flush(file)
    scratch.replace(folder / INDEX)
    current = json.loads(text)["data"]
    for old in folder.iterdir():
        if DATA.fullmatch(old.name) and old.name != current:
            shutil.rmtree(old, ignore_errors=True)


def flush(file: IO[Any]) -> None:
    """Waits until the file is on the disk: a rename must not overtake what it names."""
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def files(folder: Path, done: str) -> Iterator[None]:
    """What goes wrong with files, as one line about the checkpoint."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise RunError(f"checkpoint {folder} could not be {done}: {line(error)}") from error


def line(error: BaseException) -> str:
    """An error as one line."""
    first = next((text.strip() for text in str(error).splitlines() if text.strip()), "")
    return f"{type(error).__name__}: {first}"


def version() -> str:
    """Ours, as installed."""
    try:
        return metadata.version("fourfold")
    except metadata.PackageNotFoundError:
        return "from source"
