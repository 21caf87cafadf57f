"""Placements that were used, one JSON line each, and a run that uses them again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fourfold.hardware.errors import RunError, UsageError
from fourfold.ir.batch import SCHEMA, BatchPlan
from fourfold.ir.serial import to_plain


def as_text(batch: BatchPlan) -> str:
    """The batch plan on one line, as `BatchPlan.read` reads it."""
    return json.dumps({"schema": SCHEMA, **to_plain(batch)}, separators=(",", ":"))


def written(path: Path, batch: BatchPlan, *, step: int, origin: str) -> None:
    """Appends a line: the step, where the placement came from, the placement. Raises RunError."""
    head = json.dumps({"step": step, "origin": origin}, separators=(",", ":"))
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(f'{head[:-1]},"batch":{as_text(batch)}}}\n')
    except OSError as error:
        raise RunError(f"the log of placements {path} cannot be written: {error.strerror}") from None


@dataclass(frozen=True, slots=True)
class Replay:
    """The placements of a log by step and lengths. Of a step that a restarted run took again, the last holds."""

    path: Path
    batches: Mapping[tuple[int, tuple[int, ...]], BatchPlan]

    @classmethod
    def read(cls, path: Path) -> Replay:
        """A log that `written` wrote; a last line that was cut short is left out. Raises UsageError."""
        try:
            lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"the log of placements {path} cannot be read: {error}") from None
        rows = (_row(line, f"{path}:{number}") for number, line in enumerate(lines, 1))
        return cls(path, {(step, batch.lengths): batch for step, batch in rows})

    def of(self, step: int, lengths: tuple[int, ...]) -> BatchPlan:
        """What the logged run used. Raises UsageError when it had no such batch in that step."""
        found = self.batches.get((step, lengths))
        if found is None:
            known = {number for number, _ in self.batches}
            other = "had another batch in it" if step in known else f"holds steps {_range(known)}"
            raise UsageError(
                f"step {step} of {len(lengths)} sequences cannot be replayed: {self.path} {other}; replay the same "
                f"data in the same order, under the same plan"
            )
        return found


def _row(line: str, where: str) -> tuple[int, BatchPlan]:
    try:
        row: dict[str, Any] = json.loads(line)
        return int(row["step"]), BatchPlan.read(json.dumps(row["batch"]), where)
    except (LookupError, TypeError, ValueError):
        raise UsageError(f"{where} is no line of a log of placements") from None


def _range(steps: set[int]) -> str:
    return f"{min(steps)} to {max(steps)}" if steps else "none"
