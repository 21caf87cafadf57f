"""Frozen dataclasses to plain JSON values and back, driven by their annotations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import TypeVar, get_args, get_origin, get_type_hints

from fourfold.hardware.errors import ProfileError

T = TypeVar("T")


def plain(value: object) -> object:
    """`value` as dicts, lists, strings, numbers and None; a field at its default is written too."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return [plain(one) for one in value]
    return value


def restore(cls: type[T], data: Mapping[str, object], *, schema: str) -> T:
    """The `cls` that `plain` wrote under "machine". Raises ProfileError HW115 for another version or torn data."""
    if data.get("schema") != schema:
        raise ProfileError(f"HW115 machine snapshot: schema is {data.get('schema')!r}; this version reads {schema}")
    try:
        value = _typed(cls, data["machine"])
    except (KeyError, TypeError, ValueError) as error:
        raise ProfileError(f"HW115 machine snapshot: incomplete or altered: {error}") from error
    assert isinstance(value, cls)
    return value


def _typed(annotation: object, value: object) -> object:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is UnionType:
        return None if value is None else _typed(next(one for one in arguments if one is not NoneType), value)
    if origin is tuple:
        return _tuple(arguments, value)
    if origin is Mapping:
        return {str(key): _typed(arguments[1], one) for key, one in _mapping(value).items()}
    if isinstance(annotation, type) and is_dataclass(annotation):
        hints, found = get_type_hints(annotation), _mapping(value)
        return annotation(**{field.name: _typed(hints[field.name], found[field.name]) for field in fields(annotation)})
    if annotation is float and isinstance(value, int | float):
        return float(value)
    if isinstance(annotation, type) and isinstance(value, annotation):
        return value
    raise TypeError(f"{value!r} is not {annotation}")


def _tuple(arguments: tuple[object, ...], value: object) -> tuple[object, ...]:
    if not isinstance(value, list | tuple):
        raise TypeError(f"{value!r} is not a list")
    if arguments[-1] is Ellipsis:
        return tuple(_typed(arguments[0], one) for one in value)
    return tuple(_typed(kind, one) for kind, one in zip(arguments, value, strict=True))


def _mapping(value: object) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{value!r} is not a table")
    return value
