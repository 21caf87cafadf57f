"""The machine a command runs on: a profile by name, or this one, measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fourfold.hardware.errors import UsageError

if TYPE_CHECKING:
    from fourfold.hardware.topology import Machine


def machine_of(hardware: str | None, processes: int | None) -> Machine:
    """The profile named, with as many devices as there are to be processes. Raises UsageError, ProfileError."""
    from fourfold.hardware import load
    from fourfold.hardware.spec import parse

    if hardware is None:
        raise UsageError("which machine? give --hardware NAME, for example cpu-gloo-4, or --hardware detect")
    if hardware == "detect":
        return measured(processes)
    machine = load(hardware)
    if processes in (None, machine.ranks) or parse(hardware).devices is not None or machine.nodes > 1:
        return machine
    return load(f"{hardware}@{processes}")


def measured(processes: int | None, *, say: Callable[[str], None] = lambda text: None) -> Machine:
    """This machine, measured now; its profiles stay in the user's cache. Raises UsageError if they cannot."""
    from fourfold.backends.calibrate import detect
    from fourfold.hardware import load

    found = detect(quick=True, ranks=processes, say=say)
    path = Path("~/.cache/fourfold/hardware").expanduser() / f"{found.name}.toml"
    found.write(path)
    return load(str(path))
