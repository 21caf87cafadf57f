"""Weights as Hugging Face keeps them (safetensors beside a config.json), read straight into the shards of a program."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import Replicate, Shard

from fourfold.backends.communication.ranks import Ranks
from fourfold.backends.weights.boxes import Box, box_of
from fourfold.backends.weights.initial import Initialised
from fourfold.hardware.errors import RunError, UsageError
from fourfold.ir.graph import Graph

ONE, INDEX = "model.safetensors", "model.safetensors.index.json"
PLAIN = ("F64", "F32", "F16", "BF16")
"""Number formats of floating tensors that can be read: others belong to quantised weights."""
REBUILT = (".inv_freq",)
"""Ends of names that old checkpoints hold and a model makes anew."""


@dataclass(frozen=True, slots=True)
class Read:
    """One tensor of the program, and which elements of which tensor of a file it takes (None: none)."""

    name: str
    target: Tensor
    key: str
    box: Box | None


class Folder:
    """The tensors in a folder by name; files are opened when first asked for."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self.stack = folder, stack
        self.opened: dict[str, Any] = {}
        self.files: Mapping[str, str] = self._files()

    def shape(self, key: str) -> tuple[int, ...]:
        """The shape of a tensor, read from its file's header."""
        return tuple(self._slice(key).get_shape())

    def kind(self, key: str) -> str:
        """The number format of a tensor, as safetensors calls it."""
        return str(self._slice(key).get_dtype())

    def read(self, key: str, box: Box) -> Tensor:
        """These elements of a tensor."""
        found: Tensor = self._slice(key)[box.slices] if box.ranges else self._open(self.files[key]).get_tensor(key)
        return found

    def _slice(self, key: str) -> Any:
        return self._open(self.files[key]).get_slice(key)

    def _open(self, file: str) -> Any:
        if file not in self.opened:
            try:
                self.opened[file] = self.stack.enter_context(safetensors().safe_open(self.folder / file, "pt"))
            except Exception as error:
                raise RunError(f"{self.folder / file} cannot be read: {type(error).__name__}: {error}") from error
        return self.opened[file]

    def _files(self) -> Mapping[str, str]:
        index = self.folder / INDEX
        if (self.folder / ONE).is_file() and not index.is_file():
            return dict.fromkeys(self._open(ONE).keys(), ONE)
        try:
            found = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        except OSError:
            raise RunError(
                f"{self.folder} holds neither {ONE} nor {INDEX}: load_pretrained reads weights that transformers saved "
                "as safetensors; what program.save wrote is read by program.load"
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{index} is damaged: {type(error).__name__}: {error}") from None
        return {str(key): str(file) for key, file in found.items()}


def safetensors() -> Any:
    """The library: an extra, which only those need who read or write its files."""
    try:
        import safetensors.torch
    except ImportError as error:
        raise UsageError(f"this needs safetensors: pip install 'fourfold[hf]' ({error})") from None
    return safetensors


def fill(
    folder: Path,
    root: nn.Module,
    graph: Graph,
    model: nn.Module,
    *,
    cuts: Mapping[str, Shard | Replicate],
    ranks: Ranks,
) -> Mapping[str, Tensor]:
    """Fills every parameter and buffer of `root`; the tensors that neither a file nor an initialiser sets, as kept.

    Nothing is written before all names and shapes are seen to fit. Raises RunError for a missing, damaged, quantised or
    other model's checkpoint, naming the first tensor.
    """
    with ExitStack() as stack:
        source = Folder(folder, stack)
        reads = tuple(_reads(source, root, graph, model, cuts, ranks))
        made = Initialised(model, 0, ranks.device)
        with torch.no_grad():
            for read in reads:
                _fill(read, source, made)
    return made.kept


def _reads(
    source: Folder,
    root: nn.Module,
    graph: Graph,
    model: nn.Module,
    cuts: Mapping[str, Shard | Replicate],
    ranks: Ranks,
) -> Iterator[Read]:
    """What each tensor of the program takes from where. Raises RunError as `fill` does."""
    names = _names(model)
    _check(source, model.state_dict(keep_vars=True), names)
    tp = ranks.tensor.rank, ranks.tensor.size
    for name, target in (*root.named_parameters(), *root.named_buffers()):
        part = graph.parts.get(name)
        whole = part.of if part is not None else name
        key = next((alias for alias in names[whole] if alias in source.files), "")
        shape = source.shape(key) if key else ()
        yield Read(name, target, key, box_of(shape, target, part=part, cut=cuts.get(name), tp=tp) if key else None)


def _check(source: Folder, kept: Mapping[str, Tensor], names: Mapping[str, tuple[str, ...]]) -> None:
    """That the folder holds the tensors of the model's state_dict, each of its shape, and no others."""
    missing = [n for n in kept if not any(alias in source.files for alias in names[n])]
    extra = [key for key in source.files if key not in kept and not key.endswith(REBUILT)]
    if missing or extra:
        what = f"has no tensor {missing[0]!r}" if missing else f"holds {extra[0]!r}, which this model has not"
        others = f" ({len(missing)} missing, {len(extra)} more than the model has)" if len(missing + extra) > 1 else ""
        raise RunError(f"{source.folder} {what}{others}: it is of another model")
    for name, value in kept.items():
        if name not in source.files:
            continue
        if source.shape(name) != tuple(value.shape):
            raise RunError(
                f"{source.folder} is of another model: {name} is {list(value.shape)} here and "
                f"{list(source.shape(name))} there"
            )
        if value.is_floating_point() and source.kind(name) not in PLAIN:
            raise RunError(
                f"{source.folder} holds {name} as {source.kind(name)}: quantised weights cannot be trained; "
                f"give a checkpoint in {', '.join(PLAIN)}"
            )


def _names(model: nn.Module) -> Mapping[str, tuple[str, ...]]:
    """For each name of a tensor all names it has, itself first: tied weights may be kept under any."""
    own = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    same: dict[int, list[str]] = {}
    for name, value in own:
        same.setdefault(id(value), []).append(name)
    return {name: (name, *(other for other in same[id(value)] if other != name)) for name, value in own}


def _fill(read: Read, source: Folder, made: Initialised) -> None:
    """Copies what a rank keeps of one tensor; what no file keeps (rotary frequencies) is made as the model makes it."""
    local = read.target.to_local() if hasattr(read.target, "to_local") else read.target
    if not read.key:
        found = made(read.name)
        if found is None:
            raise RunError(f"nothing sets {read.name}: it is in no file, and the model's own initialisers leave it")
        local.copy_(found.reshape(local.shape))
    elif read.box is not None:
        local.copy_(source.read(read.key, read.box).reshape(local.shape))
