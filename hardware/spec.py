"""What a user writes for a machine: NAME, NAME:NODES or NAME*NODES, NAME@DEVICES; a .toml file is a name too."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from fourfold.hardware.errors import ProfileError

FORM: Final = re.compile(r"(?P<name>[^@*]+?)(?:@(?P<devices>[^@:*]*))?(?:[:*](?P<nodes>[^@:*/\\]*))?")
MOST: Final = 65536
"""Nodes, or devices of a node: beyond, the ranks of a machine could not be told apart in reasonable time."""


@dataclass(frozen=True, slots=True)
class Spec:
    """A profile, how many of it, and how many devices of each node (None: as the profile says)."""

    text: str
    name: str
    nodes: int | None
    devices: int | None

    @property
    def is_file(self) -> bool:
        return self.name.endswith(".toml")


def parse(text: str) -> Spec:
    """The parts of `text`. Raises ProfileError HW113 for a count that is not a whole number from 1 to MOST."""
    found = FORM.fullmatch(text.strip())
    if found is None or (":" in found["name"] and not found["name"].endswith(".toml")):
        raise ProfileError(f"HW113 {text!r} is not a machine; write for example dgx-h200, dgx-h200:4 or dgx-h200@4")
    nodes = _count(text, found["nodes"], "nodes")
    return Spec(text.strip(), found["name"], nodes, _count(text, found["devices"], "devices of a node"))


def _count(text: str, written: str | None, what: str) -> int | None:
    if written is None:
        return None
    if not written.isdecimal() or int(written) < 1:
        raise ProfileError(f"HW113 {text!r}: {written!r} is not a number of {what}; write a whole number of at least 1")
    if int(written) > MOST:
        raise ProfileError(f"HW113 {text!r}: {written} {what} are too many; write at most {MOST}")
    return int(written)
