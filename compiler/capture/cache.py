"""Captured graphs on disk, by what the model is made of: a second plan of the same model takes no export."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import torch
from torch import nn

from fourfold.compiler.capture import huggingface
from fourfold.compiler.capture.describe import describe
from fourfold.compiler.capture.sources import files
from fourfold.hardware.errors import UsageError
from fourfold.ir import graph as graph_module
from fourfold.ir.graph import Graph
from fourfold.ir.serial import from_plain, to_json

OWN = (Path(__file__).parent, Path(graph_module.__file__).parent)
"""The folders whose code decides what a captured graph says: another version of them captures anew."""


def folder() -> Path:
    """Where graphs are kept: the user's cache folder."""
    return Path(os.path.expanduser("~")) / ".cache" / "fourfold" / "graphs"


def key(model: nn.Module, dtype: torch.dtype, *, training: bool) -> str:
    """A digest of the model's modules, their settings and source, its parameters, and the versions that capture it."""
    versions = f"{torch.__version__} {huggingface.version()}"
    digest = hashlib.sha256(f"{versions} {dtype} {training} {torch.get_default_dtype()}".encode())
    for path in sorted(p for folder in OWN for p in folder.rglob("*.py")):
        digest.update(path.read_bytes())
    kinds = set()
    for name, module in model.named_modules(remove_duplicate=False):
        kinds.add(type(module))
        digest.update(f"{name}|{type(module).__module__}.{type(module).__qualname__}|{_settings(module)}".encode())
    for name, parameter in model.named_parameters(remove_duplicate=False):
        digest.update(
            f"{name}|{tuple(parameter.shape)}|{parameter.requires_grad}|{parameter.is_floating_point()}".encode()
        )
    for name, buffer in model.named_buffers():
        digest.update(f"{name}|{tuple(buffer.shape)}|{buffer.dtype}".encode())
    for path in files(kinds):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:32]


def read(name: str) -> Graph | None:
    """The cached graph, or None; a damaged file counts as absent."""
    try:
        return from_plain(Graph, json.loads((folder() / f"{name}.json").read_text()))
    except (OSError, ValueError, KeyError, UsageError):
        return None


def write(name: str, graph: Graph) -> None:
    """Keeps `graph`; a folder that cannot be written is no error, only no cache."""
    try:
        folder().mkdir(parents=True, exist_ok=True)
        scratch = folder() / f"{name}.{os.getpid()}.part"
        scratch.write_text(to_json(graph))
        scratch.replace(folder() / f"{name}.json")
    except OSError:
        return


def _settings(module: nn.Module) -> str:
    """The module's own attributes, tensors and children left out: they are told by name and shape."""
    own = {k: v for k, v in vars(module).items() if k not in ("_parameters", "_buffers", "_modules", "_version")}
    bare = {k for k, v in own.items() if k.startswith("_") and isinstance(v, (dict, list, set, tuple)) and not v}
    return describe({k: v for k, v in own.items() if k not in bare})
