"""A program's weights written as Hugging Face keeps them: config.json and safetensors, a file at a time."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fourfold.backends.communication.ranks import gathered, together
from fourfold.backends.weights.pretrained import INDEX, ONE, safetensors
from fourfold.hardware.errors import RunError, UsageError
from fourfold.ir.graph import Graph

FILE_BYTES = 5e9
"""Bytes above which a checkpoint is split."""
PART = ".part"
"""End of a file's name until all of them are written."""
Gather = Callable[[str, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Form:
    """How weights are written: in this dtype (None: as they are held), at most so many bytes a file."""

    dtype: torch.dtype | None
    file_bytes: float


@dataclass(frozen=True, slots=True)
class Held:
    """One tensor of the program: the first rank that holds it, its whole shape, and this rank's part if it has one."""

    rank: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    mine: Tensor | None


def save(folder: Path, root: nn.Module, graph: Graph, model: Any, *, gather: Gather, form: Form) -> None:
    """Writes the folder on rank 0; a collective: `gather(name, part)` returns the whole of a tensor.

    Tied weights are written once; what forward never reads is written as the model holds it, or left out on the meta
    device. No more than one file's tensors are held at a time. Raises, on every rank, UsageError when the model has no
    config, RunError when a file cannot be written.
    """
    if not hasattr(getattr(model, "config", None), "save_pretrained"):
        raise UsageError(f"{type(model).__name__} has no config of transformers: write it with program.save")
    with together():
        library = safetensors()
        folder.mkdir(parents=True, exist_ok=True)
    held = _held(root)
    files = _files(_kept(model, held, graph), form)
    writes = dist.get_rank() == 0
    failed: Exception | None = None
    for file, names in files.items():
        values = {name: _whole(name, value, held, graph, gather) for name, value in names.items()}
        if not writes or failed is not None:
            continue
        # The others wait in the next gather: an error is told once all files are through.
        try:
            found = {n: _as(v, form.dtype) for n, v in values.items() if v is not None}
            library.torch.save_file(found, folder / f"{file}{PART}", {"format": "pt"})
        except Exception as error:
            failed = error
    with together():
        if failed is not None:
            raise RunError(f"{folder} could not be written: {type(failed).__name__}: {failed}") from failed
        if writes:
            _finish(folder, model, files, form.dtype or _dtype(root))


def _held(root: nn.Module) -> dict[str, Held]:
    """All tensors of the program by name: a stage of a pipeline holds but some. A collective."""
    own = dict((*root.named_parameters(), *root.named_buffers()))
    told = gathered({name: (tuple(value.shape), value.dtype) for name, value in own.items()})
    found: dict[str, Held] = {}
    for rank, tensors in enumerate(told):
        for name, (shape, dtype) in tensors.items():
            found.setdefault(name, Held(rank, shape, dtype, own.get(name)))
    return found


def _kept(model: nn.Module, held: Mapping[str, Held], graph: Graph) -> dict[str, Tensor]:
    """The tensors of the model's state_dict, each once, that the program or the model holds."""
    known = {*held, *(part.of for part in graph.parts.values())}
    first = {id(value): name for name, value in reversed([*model.named_parameters(), *model.named_buffers()])}
    wanted = {first.get(id(v), n): v for n, v in model.state_dict(keep_vars=True).items()}
    return {name: value for name, value in wanted.items() if name in known or not value.is_meta}


def _files(kept: Mapping[str, Tensor], form: Form) -> dict[str, dict[str, Tensor]]:
    """The tensors of each file, in the model's order, no larger than asked unless one tensor is."""
    groups: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, value in kept.items():
        # Masters may be wider than what the model was built in, but hardly wider than float32.
        chosen = form.dtype if value.is_floating_point() else None
        each = value.numel() * (chosen.itemsize if chosen else max(value.element_size(), 4))
        if groups[-1] and size + each > form.file_bytes:
            groups.append({})
            size = 0
        groups[-1][name] = value
        size += each
    if len(groups) == 1:
        return {ONE: groups[0]}
    return {f"model-{i:05}-of-{len(groups):05}.safetensors": group for i, group in enumerate(groups, 1)}


def _whole(name: str, value: Tensor, held: Mapping[str, Held], graph: Graph, gather: Gather) -> Tensor | None:
    """The tensor as the model names it, on the CPU of rank 0, None elsewhere; fused weights joined of their parts."""
    parts = {own: part for own, part in graph.parts.items() if part.of == name and own in held}
    names = tuple(parts) or ((name,) if name in held else ())
    found = {own: _at_first(own, held[own], gather) for own in names}
    if dist.get_rank() != 0:
        return None
    if not found:
        return value.detach().cpu()
    if name in found:
        return found[name].cpu().reshape(value.shape)
    # What no part covers is never read: it stays as the model holds it.
    kind = held[names[0]].dtype
    joined = torch.zeros(value.shape, dtype=kind) if value.is_meta else value.detach().to("cpu", kind, copy=True)
    for own, part in parts.items():
        joined.narrow(part.dim, part.start, part.stop - part.start).copy_(found[own])
    return joined


def _at_first(name: str, held: Held, gather: Gather) -> Tensor:
    """The whole of a tensor on rank 0; elsewhere whatever is at hand."""
    rank = dist.get_rank()
    whole = gather(name, held.mine) if held.mine is not None else torch.empty(0)
    if held.rank == 0 or rank not in (0, held.rank):
        return whole
    if rank == 0:
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        whole = torch.empty(held.shape, dtype=held.dtype, device=device)
        dist.recv(whole, held.rank)
    else:
        dist.send(whole.contiguous(), 0)
    return whole


def _as(value: Tensor, dtype: torch.dtype | None) -> Tensor:
    found = value.to(dtype) if dtype is not None and value.is_floating_point() else value
    return found.contiguous()


def _dtype(root: nn.Module) -> torch.dtype:
    """The dtype in which the program holds its weights."""
    return next((p.dtype for p in root.parameters() if p.is_floating_point()), torch.float32)


def _finish(folder: Path, model: Any, files: Mapping[str, Mapping[str, Tensor]], dtype: torch.dtype) -> None:
    """Files under their names, index and config; what an older save left goes. Raises RunError."""
    try:
        for file in files:
            (folder / f"{file}{PART}").replace(folder / file)
        config = copy.deepcopy(model.config)
        config.dtype, config.architectures = dtype, [type(model).__name__]
        config.save_pretrained(folder)
        index = folder / INDEX
        if ONE in files:
            index.unlink(missing_ok=True)
        else:
            size = sum((folder / file).stat().st_size for file in files)
            where = {name: file for file, names in files.items() for name in names}
            text = json.dumps({"metadata": {"total_size": size}, "weight_map": where}, indent=2)
            index.write_text(text + "\n", encoding="utf-8")
        _remove_others(folder, tuple(files))
    except OSError as error:
        raise RunError(f"{folder} could not be written: {error}") from error


def _remove_others(folder: Path, files: Sequence[str]) -> None:
    """An older save may have had other files: they would be read by no one, or by mistake."""
    for old in (*folder.glob("model-*-of-*.safetensors"), *folder.glob(ONE)):
        if old.name not in files:
            old.unlink()
