"""The machine a command runs on: a profile by name, or this one, measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fourfold.hardware.errors import RunError, UsageError

if TYPE_CHECKING:
    from fourfold.hardware.topology import Machine

RANKS = 4


def machine_of(hardware: str | None, processes: int | None) -> Machine:
    """The profile named, with as many devices as there are to be processes. Raises UsageError, ProfileError."""
    from fourfold.hardware import load
    from fourfold.hardware.spec import parse

    if hardware is None:
        raise UsageError("which machine? give --hardware NAME, for example cpu-gloo-4, or --hardware detect")
    if hardware == "detect":
        return measured(processes or RANKS)
    machine = load(hardware)
    if processes in (None, machine.ranks) or parse(hardware).devices is not None or machine.nodes > 1:
        return machine
    return load(f"{hardware}@{processes}")


def measured(processes: int) -> Machine:
    """This machine, measured now; its profile stays in the user's cache. Raises RunError where that is not writable."""
    from fourfold.backends.calibrate import detect
    from fourfold.hardware import load

    path = Path("~/.cache/fourfold/this-machine.toml").expanduser()
    text = detect(quick=True, ranks=processes)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RunError(f"the profile of this machine cannot be written to {path}: {error.strerror}") from None
    return load(str(path))
