"""One TOML file as it is written: its values under dotted paths, before inheritance.

Tables become `memory.usable`; arrays of named tables become `fabric.nvswitch.links`; arrays of tables without names
are numbered, `matmul.0.dtype`. A flat mapping keeps merging, provenance and error places one and the same thing.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fourfold.hardware.errors import ProfileError

Table = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Document:
    """What one file says: `removed` are inherited paths that it deletes, `provenance` is path -> (status, source)."""

    file: str
    leaves: Mapping[str, object]
    removed: tuple[str, ...]
    provenance: Mapping[str, tuple[str, str]]

    def word(self, path: str) -> str:
        """The text at `path`, or nothing."""
        value = self.leaves.get(path, "")
        return value if isinstance(value, str) else ""


def read(path: Path, shown: str) -> Document:
    """The document in `path`, called `shown` in messages.

    Raises ProfileError: HW112 for a file that cannot be read or is not TOML, HW105 for a name given twice in it,
    HW122 for a provenance entry without a status.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ProfileError(f"HW112 {shown}: cannot read the file: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ProfileError(f"HW112 {shown}: not valid TOML: {error}") from error
    provenance = _provenance(table.pop("provenance", {}), shown)
    network = table.get("network")
    if isinstance(network, dict):  # the short form: one network that joins all groups
        table["network"] = [{"name": "all", **network}]
    leaves = dict(_flat(table, "", shown))
    removed = tuple(_removed(leaves)) + tuple(_replaced(table))
    return Document(shown, {p: v for p, v in leaves.items() if not _is_remove(p)}, removed, provenance)


def is_inside(path: str, prefix: str) -> bool:
    """Whether `path` is `prefix` or lies below it."""
    return path == prefix or path.startswith(prefix + ".")


def _flat(value: object, path: str, shown: str) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for key, below in value.items():
            yield from _flat(below, f"{path}.{key}" if path else str(key), shown)
    elif isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
        for key, row in zip(_row_names(value, path, shown), value, strict=True):
            yield from _flat(row, f"{path}.{key}", shown)
    else:
        yield path, value


def _row_names(rows: list[Table], path: str, shown: str) -> list[str]:
    if not _is_named(rows):
        return [str(index) for index in range(len(rows))]
    names = [str(row["name"]) for row in rows]
    for name in names:
        if names.count(name) > 1:
            raise ProfileError(f"HW105 {shown}: [[{path}]] has two entries named {name!r}; rename one")
        if "." in name:
            raise ProfileError(f"HW105 {shown}: [[{path}]] {name!r}: a name may not contain a dot")
    return names


def _is_named(rows: list[Table]) -> bool:
    return all("name" in row for row in rows)


def _is_remove(path: str) -> bool:
    return path == "remove" or path.endswith(".remove")


def _removed(leaves: Table) -> Iterator[str]:
    for path, value in leaves.items():
        if _is_remove(path) and isinstance(value, list):
            yield from (path.removesuffix("remove") + str(key) for key in value)


def _replaced(table: Table) -> Iterator[str]:
    """Arrays of tables without names: they replace what was inherited, as there is no name to merge by."""
    for key, value in table.items():
        if isinstance(value, list) and value and isinstance(value[0], dict) and not _is_named(value):
            yield key


def _provenance(table: object, shown: str) -> dict[str, tuple[str, str]]:
    found = {}
    for path, entry in table.items() if isinstance(table, dict) else ():
        if not isinstance(entry, dict) or not isinstance(entry.get("status"), str):
            raise ProfileError(
                f'HW122 {shown}: provenance."{path}" must read {{ status = "vendor", source = "..." }}, found {entry!r}'
            )
        found[str(path)] = (entry["status"], str(entry.get("source", "")))
    return found
