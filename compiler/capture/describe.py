"""Text that tells two settings of a module apart: numbers by value, functions by code, objects by what they hold."""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import types
from typing import Any

import torch

PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size, slice, range)
DEPTH = 5


def describe(value: Any, depth: int = DEPTH) -> str:
    """Equal for settings that compute alike, different for others; `depth` bounds how far objects are looked into."""
    if isinstance(value, enum.Enum):
        return str(value)
    if isinstance(value, PLAIN):
        return repr(value)
    if isinstance(value, torch.Tensor):
        return f"tensor{tuple(value.shape)}{value.dtype}{value.requires_grad}"
    if isinstance(value, torch.nn.Module):
        return f"module {type(value).__qualname__}"
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if depth == 0:
        return type(value).__qualname__
    return _inside(value, depth - 1)


def _inside(value: Any, depth: int) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(f"{k!r}:{describe(v, depth)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(describe(v, depth) for v in value) + "]"
    if isinstance(value, (set, frozenset)):
        return "{" + ",".join(sorted(describe(v, depth) for v in value)) + "}"
    if isinstance(value, functools.partial):
        return describe((value.func, value.args, value.keywords), depth)
    if isinstance(value, types.MethodType):
        return f"{describe(value.__func__, depth)} of {describe(value.__self__, depth)}"
    if isinstance(value, types.FunctionType):
        return _function(value, depth)
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if dataclasses.is_dataclass(value):
        held = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    else:
        held = getattr(value, "__dict__", {})
    return f"{kind}{_inside(dict(held), depth)}" if held else f"{kind} {getattr(value, '__qualname__', '')}"


def _function(value: types.FunctionType, depth: int) -> str:
    cells = [_content(cell) for cell in value.__closure__ or ()]
    given = (value.__defaults__, value.__kwdefaults__, cells)
    return f"{value.__module__}.{value.__qualname__} {_code(value.__code__)} {describe(given, depth)}"


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _code(code: types.CodeType) -> str:
    """A digest of what a function does; the constants may hold functions of its own."""
    parts = [code.co_code.hex(), repr(code.co_names)]
    parts += [_code(c) if isinstance(c, types.CodeType) else repr(c) for c in code.co_consts]
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]
