"""The host around the measurement: its memory, and how busy strangers keep its cores."""

from __future__ import annotations

import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path

MEMINFO, STAT, LIMIT = Path("/proc/meminfo"), Path("/proc/stat"), Path("/sys/fs/cgroup/memory.max")
IDLE = (3, 4)
"""Columns of /proc/stat that count time in which a core did nothing."""
UNKNOWN = float(4 * 2**30)


def memory() -> tuple[float, float]:
    """Bytes this host has, and those that are free for new programs; under a limit, those of the limit."""
    total, free = _memory()
    try:
        limit = float(LIMIT.read_text())
    except (OSError, ValueError):
        return total, free
    return min(total, limit), min(free, limit)


def _memory() -> tuple[float, float]:
    try:
        rows = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
        total, free = (1024.0 * int(rows[key].split()[0]) for key in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError):
        known = "SC_PHYS_PAGES" in os.sysconf_names
        total = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) if known else UNKNOWN
        return total, total / 2
    return total, free


@dataclass(frozen=True, slots=True)
class Busy:
    """A moment: seconds all cores have worked, those this program and its ended children have, and the time."""

    everyone: float
    own: float
    at: float

    @classmethod
    def now(cls) -> Busy:
        """This moment; nobody works where the system does not tell."""
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        own = sum(one.ru_utime + one.ru_stime for one in used)
        return cls(_everyone(), own, time.perf_counter())

    def strangers(self) -> float:
        """The share of all cores that other programs have taken since."""
        now = Busy.now()
        room = (now.at - self.at) * (os.cpu_count() or 1)
        others = (now.everyone - self.everyone) - (now.own - self.own)
        return max(0.0, others / room) if room > 0 else 0.0


def _everyone() -> float:
    try:
        ticks = [int(word) for word in STAT.read_text().splitlines()[0].split()[1:9]]
    except (OSError, ValueError, IndexError):
        return 0.0
    return sum(tick for column, tick in enumerate(ticks) if column not in IDLE) / os.sysconf("SC_CLK_TCK")
