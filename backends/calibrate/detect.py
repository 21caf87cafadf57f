"""Measures the machine it runs on, all ranks at once, and says it in profiles."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from fourfold import hardware
from fourfold.backends.calibrate.ask import Ask
from fourfold.backends.calibrate.chores import chores
from fourfold.backends.calibrate.clock import cores
from fourfold.backends.calibrate.collectives import collectives
from fourfold.backends.calibrate.found import Found, Rates, found
from fourfold.backends.calibrate.kernels import kernels
from fourfold.backends.calibrate.profiles import Host, profiles
from fourfold.backends.calibrate.surroundings import Busy, memory
from fourfold.backends.communication import processes
from fourfold.hardware.errors import UsageError

T = TypeVar("T")
Say = Callable[[str], None]

RANKS = 4
"""Processes on a machine without GPUs, if nothing else is asked."""
TIMEOUT = 300.0
MEMORY_SHARE = 0.8
"""Of the memory that is free now, what the ranks may plan with."""
DOUBTFUL = 0.1
"""Share of the cores that strangers may take before the figures are in doubt."""


@dataclass(frozen=True, slots=True)
class Detected:
    """The profiles of this machine by name, the node first, which names the others; and what they are made of."""

    name: str
    texts: Mapping[str, str]
    found: Found

    def write(self, path: str | Path) -> tuple[Path, ...]:
        """Writes the node to `path`, whose file is called as the profile, the others beside it; all paths.

        Raises UsageError for another name, or a folder that cannot be written.
        """
        first = Path(path)
        if first.name != f"{self.name}.toml":
            raise UsageError(f"{path} cannot hold the profile {self.name!r}: its file is called {self.name}.toml")
        paths = {name: first.with_name(f"{name}.toml") for name in self.texts}
        try:
            first.parent.mkdir(parents=True, exist_ok=True)
            for name, text in self.texts.items():
                paths[name].write_text(text, encoding="utf-8")
        except OSError as error:
            raise UsageError(f"{first.parent} cannot be written: {error.strerror}") from None
        return tuple(paths.values())


@dataclass(frozen=True, slots=True)
class Look:
    """What torch says of the device of a rank: its name, and versions of what runs on it."""

    name: str
    versions: Mapping[str, str]


def detect(
    *,
    name: str = "this-machine",
    ranks: int | None = None,
    quick: bool = False,
    environment: Mapping[str, str] | None = None,
    say: Say = lambda text: None,
) -> Detected:
    """Profiles called `name` of this machine as `ranks` processes share it: its GPUs, else its processor under gloo.

    quick: within 20 s on two cores; else up to 90 s. `environment` is recorded; `say` is told what goes on.
    Raises UsageError for more ranks than GPUs, ProfileError HW302 for a GPU that no profile knows, RunError for ranks
    that fail.
    """
    gpus = torch.cuda.device_count()
    ranks = ranks or gpus or RANKS
    if ranks < 1 or (gpus and ranks > gpus):
        raise UsageError(f"--ranks {ranks}: " + (f"this host has {gpus} GPUs" if gpus else "at least 1 is needed"))
    ask = Ask("cuda" if gpus else "cpu", ranks, quick)
    (look,) = _together(look_at, Ask(ask.device, 1, quick))
    device = hardware.match(look.name) if gpus else None
    rates = _rates(device) if device else None
    result = _found(ask, rates, say)
    host = _host(ask, name, device, look.versions, environment or {})
    return Detected(name, profiles(host, result), result)


def look_at(ask: Ask, rank: int) -> Look:
    """The device of one rank."""
    versions = {"torch": torch.__version__}
    if not ask.on_gpu:
        return Look("cpu", versions)
    nccl = ".".join(str(part) for part in torch.cuda.nccl.version())  # type: ignore[no-untyped-call]
    return Look(torch.cuda.get_device_name(ask.place(rank)), versions | {"nccl": nccl})


def _found(ask: Ask, rates: Rates | None, say: Say) -> Found:
    """All measurements, one group of processes after the other."""
    before, started = Busy.now(), time.perf_counter()
    say(f"timing products, attention and elementwise kernels on {ask.ranks} ranks at once")
    timed = _together(kernels, ask)
    done = _together(chores, ask) if not ask.on_gpu else ()
    say(f"{time.perf_counter() - started:.0f} s; timing collectives over groups of {_counted(ask.groups)}")
    traffic = _together(collectives, ask)
    say(f"{time.perf_counter() - started:.0f} s; fitting")
    taken = 0.0 if ask.on_gpu else before.strangers()
    if taken > DOUBTFUL:
        say(f"other programs took {taken:.0%} of the cores: collectives are told by processor time, not by the wall")
    share = max(1.0, ask.ranks / cores()) if taken > DOUBTFUL else None
    return found(timed, traffic, done, rates=rates, share=share)


def _together(measure: Callable[[Ask, int], T], ask: Ask) -> tuple[T, ...]:
    """What each rank measured; forked, so that none of them imports anything again."""
    return processes.run(partial(measure, ask), ask.ranks, timeout=TIMEOUT)


def _rates(device: str) -> Rates:
    known = hardware.load(device).device
    return Rates(known.peak, known.bandwidth)


def _host(ask: Ask, name: str, device: str | None, versions: Mapping[str, str], environment: Mapping[str, str]) -> Host:
    total, free = memory()
    return Host(
        name=name,
        device=device,
        ranks=ask.ranks,
        arch=platform.machine() or "unknown",
        cores=cores(),
        memory=total,
        usable=MEMORY_SHARE * free / ask.ranks,
        versions=versions,
        environment=environment,
        today=date.today(),
    )


def _counted(groups: tuple[int, ...]) -> str:
    return " and ".join(str(size) for size in groups) or "one, none"
