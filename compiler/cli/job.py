"""What the ranks of a run are told, as a file between the parent and them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

SCHEMA = "fourfold.run/1"


@dataclass(frozen=True, slots=True)
class Job:
    """What every rank of a run is told: the model, the data, and how to train; the plan lies beside it."""

    model: str
    data: str
    length: int
    steps: int
    tokens: int
    rate: float
    seed: int
    predicted: float
    overrides: Mapping[str, int | float | bool | str] = field(default_factory=dict)
    sample: str = ""
    keep: bool = False
    every: int = 0
    resume: str = ""
    policy: str = ""

    def write(self, folder: Path) -> None:
        """As job.json in the run's folder."""
        (folder / "job.json").write_text(json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Job:
        """What `write` wrote."""
        data = json.loads((folder / "job.json").read_text())
        data.pop("schema")
        return cls(**data)
