"""All rules over profiles, in four files by kind; a rule is one small function in a table."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from fourfold.hardware.checks import calibration, cluster, device, fields, node
from fourfold.hardware.checks.finding import Message, Rule, message
from fourfold.hardware.errors import ProfileError
from fourfold.hardware.library import Library, open_library, shown
from fourfold.hardware.profile import Profile

RULES: Final[dict[str, tuple[Rule, ...]]] = {
    "device": device.RULES,
    "node": node.RULES,
    "cluster": cluster.RULES,
    "calibration": calibration.RULES,
}

__all__ = ["Message", "check", "check_file", "demand"]


def check(profile: Profile, library: Library) -> tuple[Message, ...]:
    """Everything that is wrong or odd with a resolved profile."""
    rules: tuple[Rule, ...] = fields.RULES if profile.is_abstract else (*fields.RULES, *RULES[profile.kind])
    return tuple(message(profile.file, finding) for rule in rules for finding in rule(profile, library))


def check_file(path: str | Path) -> tuple[Message, ...]:
    """Everything that is wrong or odd with one file; a file that cannot be resolved gives the one reason why.

    Profiles in the file's own folder are found before all others.
    """
    file = Path(path)
    try:
        library, name = open_library((file.parent,)).with_file(file)
        return check(library.profile(name), library)
    except ProfileError as error:
        code, _, text = str(error).partition(" ")
        return (Message(code, "error", shown(file), text.removeprefix(f"{shown(file)}: ")),)


def demand(profile: Profile, library: Library) -> Profile:
    """The profile itself, if nothing is wrong with it. Raises ProfileError with the first error and how many follow."""
    errors = [one for one in check(profile, library) if one.level == "error"]
    if errors:
        more = f" (and {len(errors) - 1} more: fourfold hardware check {profile.file})" if len(errors) > 1 else ""
        raise ProfileError(f"{errors[0]}{more}")
    return profile
