"""What a rule finds, and the message it becomes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

from fourfold.hardware.library import Library
from fourfold.hardware.profile import Profile
from fourfold.hardware.units import UnitError

Finding = tuple[str, str, str]
"""Code, path of the value in the profile, sentence."""

Rule = Callable[[Profile, Library], Iterator[Finding]]

WARNINGS: Final = frozenset(
    {"HW120", "HW212", "HW213", "HW214", "HW221", "HW222", "HW223", "HW233", "HW237", "HW242", "HW264"}
)


@dataclass(frozen=True, slots=True)
class Message:
    """One finding with its place: an error stops planning, a warning does not."""

    code: str
    level: Literal["error", "warning"]
    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.code} {self.where}: {self.text}"


def message(file: str, finding: Finding) -> Message:
    """The message of a finding in `file`."""
    code, path, text = finding
    return Message(code, "warning" if code in WARNINGS else "error", f"{file}: {path}" if path else file, text)


def si(profile: Profile, path: str) -> float | None:
    """The number at `path` in SI; None where it is absent or unreadable, which the field rules report."""
    try:
        return profile.number(path)
    except UnitError:
        return None
