"""Variants one after another in one process group: every rank learns how each ended, and no failure ends the run.

Ranks tell each other through the store, not through the device: after a rank ran out of memory, its collectives are
missing and those of the others may wait for ever.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from threading import Timer
from typing import Any

import torch
import torch.distributed as dist
from measuring import Row, table

PATIENCE = 90.0
"""Seconds a rank waits for the others after its own turn ended."""


@dataclass
class Turns:
    """The rows so far, where they are written, and the seconds all may take.

    limit: seconds after which a turn that does not end is an error row, and the run ends with it.
    """

    out: Path
    budget: float
    started: float
    limit: float | None = None
    rows: list[Row] = field(default_factory=list)
    number: int = 0
    last: float = 0.0

    def __post_init__(self) -> None:
        default = dist.distributed_c10d._get_default_store()
        self.store = dist.PrefixStore("turns", default)  # type: ignore[attr-defined]
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.out.mkdir(parents=True, exist_ok=True)

    def take(self, program: str, name: str, turn: Callable[[], Row], *, least: float = 0.0) -> Row | None:
        """The row of one turn, from the slowest and fullest rank; with its error if any rank had one.

        None when the time is up, by the first rank's watch: a turn as long as the last one, and at least `least`
        seconds, would not fit.
        """
        if not self.room(max(least, min(60.0, 1.2 * self.last))):
            return None
        began = time.monotonic()
        guard = self._guard(Row(program, name, error=f"did not end in {self.limit} s"))
        row = _tried(program, name, turn)
        guard.cancel()
        row = self._agreed(replace(row, setup=time.monotonic() - began - row.first))
        self.last = time.monotonic() - began
        self.add(row)
        return row

    def add(self, row: Row) -> None:
        """Keeps and writes a row."""
        self.rows.append(row)
        if self.rank == 0:
            with (self.out / "rows.jsonl").open("a") as file:
                file.write(json.dumps(row.plain()) + "\n")
            print(table([row]).splitlines()[1], f"[{time.monotonic() - self.started:.0f} s]", flush=True)

    def write(self, name: str, found: Any) -> None:
        """Writes a JSON file, by the first rank."""
        if self.rank == 0:
            (self.out / name).write_text(json.dumps(found, indent=1) + "\n")

    def room(self, seconds: float) -> bool:
        """Whether so many seconds are left, by the first rank's watch; every rank must ask."""
        self.number += 1
        key = f"{self.number}/go"
        if self.rank == 0:
            left = self.budget - (time.monotonic() - self.started)
            self.store.set(key, "1" if left > seconds else "")
        return bool(self.store.get(key))

    def _agreed(self, mine: Row) -> Row:
        self.store.set(f"{self.number}/{self.rank}", json.dumps(mine.plain()))
        keys = [f"{self.number}/{rank}" for rank in range(self.size)]
        try:
            self.store.wait(keys, timedelta(seconds=PATIENCE))
        except dist.DistStoreError:
            self._end(mine)
        rows = [Row(**json.loads(self.store.get(key))) for key in keys]
        failed = next((row for row in rows if row.error), None)
        if failed is not None:
            return replace(rows[0], error=failed.error, seconds=0.0, per_rank=0.0, mfu=0.0)
        peaks = {name: max(getattr(row, name) for row in rows) for name in ("allocated", "reserved")}
        return replace(max(rows, key=lambda row: row.seconds), **peaks)

    def _guard(self, row: Row) -> Timer:
        """Ends the run with `row` if it is not cancelled in time; the first rank, which writes, is the first to go."""
        guard = Timer((self.limit or 1e6) + 5.0 * (self.rank > 0), self._end, (row,))
        guard.daemon = True
        if self.limit is not None:
            guard.start()
        return guard

    def _end(self, mine: Row) -> None:
        """Another rank is stuck in a collective that this one left: what is written stays, the processes go."""
        self.add(replace(mine, error=mine.error or "another rank did not come back"))
        print(table(self.rows), flush=True)
        os._exit(3)


def _tried(program: str, name: str, turn: Callable[[], Row]) -> Row:
    try:
        return turn()
    except torch.OutOfMemoryError:
        return Row(program, name, error="out of memory")
    except Exception as error:  # a variant that fails is a row, whatever it fails by
        text = str(error).strip() or "no message"
        return Row(program, name, error=f"{type(error).__name__}: {text[:2000]}")


def failed_for_memory(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The rows of variants that did not fit."""
    return tuple(row for row in rows if "out of memory" in row.error)
