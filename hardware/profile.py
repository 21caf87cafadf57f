"""A profile after inheritance: every value with the file it came from and where that file has it from.

Inheritance resets provenance: a value that a file overrides takes that file's own entry for it, or "unstated";
what the base said about the value it replaced is gone with that value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fourfold.hardware.document import Document, is_inside
from fourfold.hardware.schema import NOT_INHERITED, field_of
from fourfold.hardware.units import EXAMPLES, quantity


@dataclass(frozen=True, slots=True)
class Leaf:
    """One value, the file that set it, and that file's word on where it is from."""

    value: object
    file: str
    status: str
    source: str


@dataclass(frozen=True, slots=True)
class Profile:
    """A resolved profile. `stray` are provenance entries that describe nothing their own file sets."""

    name: str
    kind: str
    file: str
    leaves: Mapping[str, Leaf]
    stray: tuple[str, ...]

    @property
    def is_abstract(self) -> bool:
        return self.value("abstract") is True

    def value(self, path: str) -> object:
        """The value as written, or None."""
        leaf = self.leaves.get(path)
        return None if leaf is None else leaf.value

    def text(self, path: str, default: str = "") -> str:
        value = self.value(path)
        return value if isinstance(value, str) else default

    def texts(self, path: str) -> tuple[str, ...]:
        """One string or a list of them, as a tuple."""
        value = self.value(path)
        if isinstance(value, str):
            return (value,)
        return tuple(str(one) for one in value) if isinstance(value, list) else ()

    def items(self, path: str) -> tuple[object, ...]:
        """The entries of a list, or none."""
        value = self.value(path)
        return tuple(value) if isinstance(value, list) else ()

    def whole(self, path: str, default: int = 0) -> int:
        value = self.value(path)
        return value if isinstance(value, int) and not isinstance(value, bool) else default

    def number(self, path: str) -> float | None:
        """The value in SI, or None where it is absent or "unsupported". Raises UnitError for a wrong unit."""
        value = self.value(path)
        field = field_of(self.kind, path)
        if value is None or value == "unsupported" or field is None:
            return None
        kind = "rate" if field.form == "rate?" else field.form
        for known in EXAMPLES:
            if kind == known:
                return quantity(value, known)
        return float(value) if isinstance(value, int | float) else None

    def has(self, prefix: str) -> bool:
        return any(is_inside(path, prefix) for path in self.leaves)

    def rows(self, array: str) -> tuple[str, ...]:
        """The path prefixes of an array of tables, in file order: `fabric.nvswitch`, ..."""
        parts = (path.split(".") for path in self.leaves)
        return tuple(dict.fromkeys(f"{p[0]}.{p[1]}" for p in parts if p[0] == array and len(p) > 2))


def originate(document: Document) -> Profile:
    """The profile of a file that extends nothing."""
    leaves = {path: _leaf(document, path, value) for path, value in document.leaves.items()}
    stray = tuple(path for path in document.provenance if path != "all" and not _describes(document, path))
    return Profile(document.word("name"), document.word("kind"), document.file, leaves, stray)


def inherit(base: Profile, document: Document) -> Profile:
    """`base` with what `document` adds, replaces and removes."""
    own = originate(document)
    gone = (*document.removed, *NOT_INHERITED)
    kept = {
        path: leaf
        for path, leaf in base.leaves.items()
        if not any(is_inside(path, prefix) for prefix in gone) and not _is_replaced(path, own.leaves)
    }
    order = dict.fromkeys((*own.leaves, *kept))
    leaves = {path: own.leaves.get(path) or kept[path] for path in (*NOT_INHERITED, *order) if path in order}
    return Profile(own.name, own.kind, own.file, leaves, own.stray)


def _is_replaced(path: str, own: Mapping[str, Leaf]) -> bool:
    """Whether the new file sets this path, a table that holds it, or something below it."""
    parts = path.split(".")
    above = (".".join(parts[:depth]) for depth in range(1, len(parts) + 1))
    return any(prefix in own for prefix in above) or any(is_inside(other, path) for other in own)


def _leaf(document: Document, path: str, value: object) -> Leaf:
    parts = path.split(".")
    for depth in range(len(parts), 0, -1):
        if (prefix := ".".join(parts[:depth])) in document.provenance:
            return Leaf(value, document.file, *document.provenance[prefix])
    return Leaf(value, document.file, *document.provenance.get("all", ("unstated", "")))


def _describes(document: Document, path: str) -> bool:
    return any(is_inside(leaf, path) for leaf in document.leaves)
