"""Frozen dataclasses to JSON and back, by their type hints: what is decided is a value that can be read back equal."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar

from fourfold.hardware.errors import UsageError
from fourfold.ir.graph import Ref

T = TypeVar("T")


def to_plain(value: Any) -> Any:
    """`value` as dicts, lists and scalars; fields at their default are left out, references become {"ref": name}."""
    if isinstance(value, Ref):
        return {"ref": value.name}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value) if not _is_default(value, f)
        }
    if isinstance(value, Mapping):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_plain(v) for v in value]
    return value


def from_plain(kind: type[T], data: Any) -> T:
    """The `kind` that `to_plain` wrote as `data`. Raises UsageError on unknown or missing fields."""
    return typing.cast(T, _read(kind, data))


def to_json(value: Any) -> str:
    """One line per item of the outer levels, stable order."""
    return json.dumps(to_plain(value), indent=1, ensure_ascii=False)


def _is_default(value: Any, field: dataclasses.Field[Any]) -> bool:
    if field.default is not dataclasses.MISSING:
        return bool(getattr(value, field.name) == field.default)
    if field.default_factory is not dataclasses.MISSING:
        return bool(getattr(value, field.name) == field.default_factory())
    return False


@cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _read(kind: Any, data: Any) -> Any:
    if kind is object:
        return data
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _record(kind, data)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        items = args[:1] * len(data) if args[-1] is Ellipsis else args
        return tuple(_read(k, d) for k, d in zip(items, data, strict=True))
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return {_key(args[0], k): _read(args[1], v) for k, v in data.items()}
    if origin in (typing.Union, types.UnionType):
        return _union(args, data)
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    return data


def _key(kind: Any, text: str) -> Any:
    return int(text) if kind is int else text


def _union(kinds: tuple[Any, ...], data: Any) -> Any:
    """An optional record, or an argument: scalars as they are, lists as tuples, {"ref": ..} as references."""
    if data is None:
        return None
    records = [k for k in kinds if dataclasses.is_dataclass(k)]
    if isinstance(data, dict):
        return Ref(data["ref"]) if set(data) == {"ref"} else _read(records[0], data)
    if isinstance(data, list):
        return tuple(_union(kinds, d) for d in data)
    return float(data) if float in kinds and int not in kinds and isinstance(data, int) else data


def _record(kind: type, data: Any) -> Any:
    hints = _hints(kind)
    names = {f.name for f in dataclasses.fields(kind)}
    unknown = set(data) - names
    if unknown:
        raise UsageError(
            f"{kind.__name__} has no field {sorted(unknown)[0]!r}: the file is from another version, or edited by hand"
        )
    try:
        return kind(**{name: _read(hints[name], value) for name, value in data.items()})
    except TypeError as error:
        raise UsageError(f"{kind.__name__} cannot be read: {error}") from None
