"""Checkpoints that any plan of the same model can load: sharded tensors by name, one small file a rank, one index.

A folder holds `checkpoint.json`, which names the data folder beside it. The index is replaced at the very end and at
once, so a save that fails or is killed leaves the checkpoint before it as it was. Like every checkpoint of torch, it
holds pickles: load only what you trust.
"""

from __future__ import annotations

import hashlib
import shutil
import socket
import uuid
import warnings
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load as load_tensors
from torch.distributed.checkpoint.state_dict_saver import save as save_tensors
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from fourfold.backends.checkpoint import optimizer_state
from fourfold.backends.checkpoint.checkpoint_index import (
    Index,
    Position,
    check,
    doubt,
    files,
    flush,
    line,
    parsed,
    publish,
    read,
    require,
)
from fourfold.backends.communication.ranks import Ranks, together, told
from fourfold.backends.communication.wire import along
from fourfold.hardware.errors import FourfoldError, RunError, UsageError
from fourfold.ir.serial import to_json


@runtime_checkable
class Stateful(Protocol):
    """A sampler, a learning-rate scheduler: anything with a state of its own."""

    def state_dict(self) -> Any:
        """What to keep."""

    def load_state_dict(self, state_dict: Any) -> Any:
        """Takes what `state_dict` returned."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What a rank saves and loads: its tensors by name, its optimizers and whatever else has a state.

    `copies` are tensors that it shares with an earlier stage: that one saves them, both load them.
    """

    tensors: Mapping[str, Tensor]
    optimizers: Mapping[str, Optimizer]
    stateful: Mapping[str, Stateful]
    copies: frozenset[str]

    @classmethod
    def of(
        cls, root: nn.Module, optimizer: Optimizer | None, stateful: Mapping[str, Any], copies: Container[int]
    ) -> Contents:
        """Optimizers among `stateful` are saved as the first one is; `copies` are ids of parameters.

        Raises UsageError for what has no state.
        """
        named = {"optimizer": optimizer, **stateful} if optimizer is not None else dict(stateful)
        optimizers = {k: v for k, v in named.items() if isinstance(v, Optimizer)}
        rest = {k: v for k, v in named.items() if k not in optimizers}
        for name, value in rest.items():
            if not isinstance(value, Stateful):
                raise UsageError(
                    f"{name} is {type(value).__name__}: to be part of a checkpoint it needs state_dict() and "
                    "load_state_dict()"
                )
        tensors = {**dict(root.named_parameters()), **dict(root.named_buffers())}
        return cls(tensors, optimizers, rest, frozenset(n for n, t in tensors.items() if id(t) in copies))

    def names(self) -> dict[int, str]:
        """The name of each parameter by its id."""
        return {id(t): name for name, t in self.tensors.items()}

    def shapes(self, ranks: Ranks) -> dict[str, tuple[int, ...]]:
        """The whole shape of each of the model's tensors, whatever stages they are on. A collective."""
        stages = along(ranks.wire, {name: tuple(t.shape) for name, t in self.tensors.items()})
        return {name: shape for stage in stages for name, shape in stage.items()}


def save(folder: Path, contents: Contents, index: Index, ranks: Ranks) -> None:
    """Writes a checkpoint in place of the one in `folder`, if any. A collective.

    Raises RunError on every rank when the folder cannot be written or is not the same one for all, UsageError for a
    state that no other plan could load; the checkpoint that was there is then still there.
    """
    with together():
        records = {name: optimizer_state.record(o, contents.names()) for name, o in contents.optimizers.items()}
        mine = {"rng": _rng(ranks.device), "stateful": _states(contents.stateful)}
    stages = along(ranks.wire, records)
    mine["optimizers"] = {name: optimizer_state.merged([stage[name] for stage in stages]).values() for name in records}
    name = told(f"step-{index.position.steps:08d}-{uuid.uuid4().hex[:8]}")
    data = folder / name
    try:
        _make(data, ranks)
        with _dcp(folder, "written"):
            save_tensors(_tensors(contents), storage_writer=FileSystemWriter(data))
        with together(), files(folder, "written"), (data / f"rank-{ranks.rank}.pt").open("wb") as file:
            torch.save(mine, file)
            flush(file)
        with together(), files(folder, "written"):
            if ranks.rank == 0:
                publish(folder, to_json(replace(index, data=name)))
    except FourfoldError:
        if ranks.rank == 0:
            shutil.rmtree(data, ignore_errors=True)
        raise


def load(folder: Path, contents: Contents, ranks: Ranks, *, computes: str) -> Position:
    """Reads a checkpoint into `contents`, and the random generators; returns where the run stood. A collective.

    With as many ranks as it was saved from, each rank gets its own generators and stateful objects back; else
    generators are seeded from the run's seed and step, and stateful objects get what rank 0's held. Raises RunError on
    every rank for a folder without a checkpoint, a damaged one, or one of another model or optimizer; after damage
    found late, the program's weights are a mixture. Warns on rank 0 when the checkpoint is of a model with the same
    tensors whose `computes` (checkpoint_index.computation) is another.
    """
    text = ""
    with together():
        text = read(folder) if ranks.rank == 0 else ""
    index = parsed(told(text), folder)
    shapes = contents.shapes(ranks)
    with together():
        check(index, shapes, folder)
        require(index, (*contents.optimizers, *contents.stateful), folder)
        alike = index.ranks == ranks.world
        mine = _rank_file(folder, folder / index.data / f"rank-{ranks.rank if alike else 0}.pt")
        stepped = {name: optimizer_state.stepped(o, contents.names()) for name, o in contents.optimizers.items()}
    stages = along(ranks.wire, stepped)
    with together():
        for name, optimizer in contents.optimizers.items():
            known = chain.from_iterable(stage[name] for stage in stages)
            optimizer_state.check(mine["optimizers"][name], optimizer, contents.names(), everywhere=known)
    parameters = {name: t for name, t in contents.tensors.items() if isinstance(t, nn.Parameter)}
    filled = {name: optimizer_state.empty(mine["optimizers"][name], parameters) for name in contents.optimizers}
    wanted = {**_model(contents), **_keyed(filled)}
    with _dcp(folder, "read"):
        load_tensors(wanted, storage_reader=FileSystemReader(folder / index.data))
    with together():
        for name, optimizer in contents.optimizers.items():
            optimizer_state.restore(optimizer, mine["optimizers"][name], filled[name], contents.names())
        for name, thing in contents.stateful.items():
            thing.load_state_dict(mine["stateful"][name])
        _set_rng(mine["rng"] if alike else None, index.position, ranks)
    doubts = doubt(index, computes, folder)
    if doubts and ranks.rank == 0:
        warnings.warn(doubts, stacklevel=3)
    return index.position


def _model(contents: Contents) -> dict[str, Tensor]:
    return {f"model/{name}": t.detach() for name, t in contents.tensors.items()}


def _keyed(states: Mapping[str, Mapping[tuple[str, str], Tensor]]) -> dict[str, Tensor]:
    return {f"{o}/{name}/{key}": t for o, found in states.items() for (name, key), t in found.items()}


def _tensors(contents: Contents) -> dict[str, Tensor]:
    """What this rank saves of tensors: none that an earlier stage saves."""
    names, copies = contents.names(), contents.copies
    states = {k: optimizer_state.tensors(o, names) for k, o in contents.optimizers.items()}
    own = {k: {key: t for key, t in found.items() if key[0] not in copies} for k, found in states.items()}
    return {**{f"model/{n}": t.detach() for n, t in contents.tensors.items() if n not in copies}, **_keyed(own)}


def _states(stateful: Mapping[str, Stateful]) -> dict[str, Any]:
    states = {name: thing.state_dict() for name, thing in stateful.items()}
    for name, found in states.items():
        if any(isinstance(leaf, DTensor) for leaf in _leaves(found)):
            raise UsageError(f"{name} holds tensors cut over the ranks: only the program and optimizers may")
    return states


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _make(data: Path, ranks: Ranks) -> None:
    """The empty data folder, which every rank must then see."""
    with together(), files(data.parent, "written"):
        if ranks.rank == 0:
            data.mkdir(parents=True)
    with together():
        if not data.is_dir():
            raise RunError(
                f"checkpoint {data.parent} cannot be written from {socket.gethostname()}: the folder that rank 0 made "
                "is not there; all hosts must share it"
            )


def _rank_file(folder: Path, path: Path) -> Any:
    try:
        found = torch.load(path, map_location="cpu", weights_only=False)
        kept = {name: optimizer_state.Record(**values) for name, values in found["optimizers"].items()}
        return {**found, "optimizers": kept}
    except Exception as error:
        raise RunError(f"checkpoint {folder} is damaged: {path.name}: {line(error)}") from error


@contextmanager
def _dcp(folder: Path, done: str) -> Iterator[None]:
    """What torch found wrong, on every rank, as one line."""
    try:
        yield
    except CheckpointException as error:
        rank, (cause, _) = min(error.failures.items())
        raise RunError(f"checkpoint {folder} could not be {done}: rank {rank}: {line(cause)}") from cause


def _rng(device: torch.device) -> dict[str, Tensor | None]:
    own = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return {"cpu": torch.get_rng_state(), "device": own}


def _set_rng(found: Mapping[str, Tensor | None] | None, position: Position, ranks: Ranks) -> None:
    """The saved generators, or new ones that depend on the run, its step and the place in the pool."""
    if found is None or found["cpu"] is None:
        digest = hashlib.sha256(f"{position.seed}:{position.steps}:{ranks.pool_rank}".encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:7], "little"))
        return
    torch.set_rng_state(found["cpu"])
    if found["device"] is not None and ranks.device.type == "cuda":
        torch.cuda.set_rng_state(found["device"], ranks.device)
