"""Rules for every kind: known fields, right forms, readable quantities, nothing required missing (HW1xx, HW20x)."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from datetime import date
from typing import Final

from fourfold.hardware.checks.finding import Finding
from fourfold.hardware.library import Library
from fourfold.hardware.profile import Profile
from fourfold.hardware.schema import FIELDS, STATUSES, VERSION, Field, field_of
from fourfold.hardware.units import EXAMPLES, UnitError, quantity

FORMS: Final[dict[str, tuple[type, ...]]] = {
    "text": (str,),
    "texts": (str, list),
    "whole": (int,),
    "number": (int, float),
    "share": (int, float),
    "flag": (bool,),
    "list": (list,),
}
WORDS: Final = {
    "text": "a string",
    "texts": "a string or a list of strings",
    "whole": "a whole number",
    "number": "a number",
    "share": "a number between 0 and 1",
    "flag": "true or false",
    "list": "a list",
}


def version(profile: Profile, _: Library) -> Iterator[Finding]:
    """HW100: the file is written for this version of the format."""
    if profile.value("schema") != VERSION:
        found = f"schema is {profile.value('schema')!r}" if profile.has("schema") else "schema is missing"
        yield "HW100", "", f'{found}; this version reads schema = "{VERSION}"'


def known(profile: Profile, _: Library) -> Iterator[Finding]:
    """HW110: no field that the format does not have. Dtypes have their own rule, HW204."""
    for path in profile.leaves:
        if field_of(profile.kind, path) is None and not path.startswith("peak."):
            yield "HW110", path, f"unknown key {_stranger(profile.kind, path)}"


def forms(profile: Profile, _: Library) -> Iterator[Finding]:
    """HW101 to HW104, HW111, HW224: every value can be read as what its field holds."""
    for path, leaf in profile.leaves.items():
        if (field := field_of(profile.kind, path)) is not None:
            yield from _form(path, leaf.value, field)


def present(profile: Profile, _: Library) -> Iterator[Finding]:
    """HW201, HW202, HW205: everything required is there; what one table lacks is one message."""
    if profile.is_abstract:
        return
    lacking: dict[str, list[Field]] = {}
    for field in FIELDS[profile.kind].values():
        for path in _absent(profile, field) if field.required else ():
            lacking.setdefault(path.rpartition(".")[0], []).append(field)
    for table, missing in lacking.items():
        yield _missing(table, missing)


def provenance(profile: Profile, _: Library) -> Iterator[Finding]:
    """HW120, HW122: provenance describes values of its own file, in known words."""
    for path in profile.stray:
        yield (
            "HW120",
            f"provenance.{path}",
            f"this file sets nothing at {path}; provenance is not inherited, remove the line",
        )
    statuses = {leaf.status for leaf in profile.leaves.values() if leaf.file == profile.file}
    for status in sorted(statuses - {*STATUSES, "unstated"}):
        near = difflib.get_close_matches(status, STATUSES, 1)
        hint = f"did you mean {near[0]}?" if near else f"use {', '.join(STATUSES)}"
        yield "HW122", "provenance", f"unknown status {status!r}; {hint}"


RULES: Final = (version, known, forms, present, provenance)


def _form(path: str, value: object, field: Field) -> Iterator[Finding]:
    for kind in EXAMPLES:
        if field.form in (kind, f"{kind}?") and not (field.form.endswith("?") and value == "unsupported"):
            try:
                quantity(value, kind)
            except UnitError as error:
                yield error.code, path, error.text
            return
    wanted = FORMS.get(field.form)
    if wanted and (not isinstance(value, wanted) or isinstance(value, bool) is not (field.form == "flag")):
        found = value.isoformat() if isinstance(value, date) else repr(value)
        yield "HW111", path, f"{found} is not {WORDS[field.form]}"
    elif field.form == "share" and isinstance(value, int | float) and not 0 <= value <= 1.05:
        hint = f"; {value} % is {value / 100:g}" if 1.05 < value <= 100 else ""
        yield "HW224", path, f"{value}: this is a fraction ({field.meaning}), between 0 and 1{hint}"


def _missing(table: str, fields: list[Field]) -> Finding:
    names = [field.path.rpartition(".")[2] for field in fields]
    first = f"{table}.{names[0]}" if table else names[0]
    if table == "uncalibrated":
        rest = f" and {len(names) - 1} more" if names[1:] else ""
        return "HW205", table, f'{first}{rest} missing; write extends = "_nvidia-base" or "_gpu-base", or give them'
    code = "HW202" if table == "memory" else "HW201"
    if not names[1:]:
        return code, first, f"{first} is missing: {fields[0].meaning}"
    return code, table or first, f"{', '.join(names[:-1])} and {names[-1]} are missing"


def _absent(profile: Profile, field: Field) -> Iterator[str]:
    array, star, rest = field.path.partition(".*.")
    paths = [f"{row}.{rest}" for row in profile.rows(array)] if star else [field.path]
    yield from (path for path in paths if path not in profile.leaves)


def _stranger(kind: str, path: str) -> str:
    """The first part of the path that no field has, with the closest one that exists."""
    parts = path.split(".")
    for depth, part in enumerate(parts):
        siblings = {p[depth] for p in _patterns(kind) if len(p) > depth and _agrees(p[:depth], parts[:depth])}
        if "*" not in siblings and part not in siblings:
            near = difflib.get_close_matches(part, siblings, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(sorted(siblings))}"
            return f"{part!r}; {hint}"
    return f"{parts[-1]!r}"


def _patterns(kind: str) -> list[list[str]]:
    return [field.path.split(".") for field in FIELDS[kind].values() if not field.path.startswith("*.")]


def _agrees(pattern: list[str], parts: list[str]) -> bool:
    return all(one in ("*", part) for one, part in zip(pattern, parts, strict=True))
