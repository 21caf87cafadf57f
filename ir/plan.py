"""The plan: everything that was decided, as one value. It holds no price; price is a function of it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from fourfold.hardware.errors import RunError, UsageError
from fourfold.ir.graph import Graph
from fourfold.ir.mesh import Mesh
from fourfold.ir.serial import from_plain, to_json
from fourfold.ir.workload import Workload

SCHEMA = "fourfold.plan/1"
VIRTUAL: Mapping[str, int] = {"interleaved-2": 2, "interleaved-3": 3, "interleaved-4": 4}
"""Stages a rank holds, by schedule, where it is more than one."""
SPLIT = ("zero_bubble", "solved")
"""Schedules that split the backward: gradients of a stage's input first, those of its weights later."""
SOLVABLE = 16
"""The most micro-steps that a solver orders."""
RECOMPUTE = ("none", "regions", "full")
SIZES: Mapping[str, int] = {
    "float64": 8, "float32": 4, "bfloat16": 2, "float16": 2,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Precision:
    """Dtypes of the stored parameters, of the computation, and of gradient reduction."""

    parameter: str = "float32"
    compute: str = "float32"
    reduce: str = "float32"

    bf16: ClassVar[Precision]
    fp32: ClassVar[Precision]
    fp64: ClassVar[Precision]

    def __str__(self) -> str:
        return f"{self.compute} computation, {self.parameter} parameters, gradients reduced in {self.reduce}"


Precision.bf16 = Precision("float32", "bfloat16", "float32")
Precision.fp32 = Precision()
Precision.fp64 = Precision("float64", "float64", "float64")

STATES: Mapping[str, float] = {"adamw": 8.0, "adam": 8.0, "sgd": 0.0, "sgd-momentum": 4.0, "muon": 4.0, "lion": 4.0}
"""Bytes of optimizer state per parameter, for float32 parameters."""


@dataclass(frozen=True, slots=True)
class Optimizer:
    """Its name, and the bytes it keeps for each parameter."""

    name: str = "adamw"
    state: float = 8.0

    @classmethod
    def named(cls, text: str | float) -> Optimizer:
        """From a known name or a number of bytes per parameter."""
        if isinstance(text, (int, float)):
            return cls("custom", float(text))
        if text not in STATES:
            raise UsageError(
                f"optimizer {text!r} is not known; give one of {', '.join(STATES)} or its bytes per parameter"
            )
        return cls(text, STATES[text])


@dataclass(frozen=True, slots=True)
class Layout:
    """How one block class lies on the tensor axis: a cut for each node that has one, states of inputs and outputs."""

    cuts: Mapping[str, str] = field(default_factory=dict)
    states: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sharing:
    """How the sp ranks of a group share the attention of a micro-step's documents.

    `method` is a name of ir/sequence, `layout` one of its layouts; `ulysses` neighbours exchange heads for tokens;
    gradients of keys and values travel in dtype `travel`.
    """

    method: str = "ring"
    layout: str = "zigzag"
    ulysses: int = 1
    travel: str = "float32"

    @classmethod
    def named(cls, text: str, ranks: int) -> Sharing:
        """As a batch plan says it of so many ranks: a method, and of `usp` how many of them exchange heads: `usp8`.

        Heads exchanged by all need no balance of tokens. What is no such text is a method that no rule knows.
        """
        if text == "ulysses":
            return cls(text, "contiguous", ranks)
        some = re.fullmatch("usp([1-9][0-9]{0,5})", str(text))
        return cls("usp", "zigzag", int(some[1])) if some else cls(text, "zigzag")

    def __str__(self) -> str:
        heads = f", heads over {self.ulysses}" if self.ulysses > 1 else ""
        return f"{self.method}, {self.layout}{heads}"


@dataclass(frozen=True, slots=True)
class Decision:
    """One choice of one pass: what about, what was chosen, and the seconds of each option."""

    by: str
    about: str
    chose: str
    over: tuple[tuple[str, float], ...] = ()


def damaged(source: str, error: Exception) -> UsageError:
    """What is said of a plan from `source` that reading or checking stumbled over."""
    said = f"{type(error).__name__}: {error}"
    return UsageError(f"{source} is a damaged plan ({said}); make it again with `fourfold plan --save`")


@dataclass(frozen=True)
class Plan:
    """A parallel layout for one model, workload and machine.

    `capacity` is the most tokens a rank's micro-step holds; `bucket` what token counts are padded to; `recompute` has
    one word per call of the graph; `bounds` are the calls at which a pipeline stage after the first begins, and
    `schedule` names the order its micro-steps run in, and `order` is that of a solver, as text; `machine` is the
    profile's snapshot.
    """

    graph: Graph
    machine: Mapping[str, object]
    workload: Workload
    mesh: Mesh = field(default_factory=Mesh)
    zero: int = 3
    precision: Precision = field(default_factory=Precision)
    optimizer: Optimizer = field(default_factory=Optimizer)
    micro_steps: int = 1
    capacity: int = 8192
    bucket: int = 128
    layouts: Mapping[str, Layout] = field(default_factory=dict)
    recompute: tuple[str, ...] = ()
    sharing: Sharing = field(default_factory=Sharing)
    bounds: tuple[int, ...] = ()
    schedule: str = "1f1b"
    order: str = ""
    pins: Mapping[str, str | int] = field(default_factory=dict)
    log: tuple[Decision, ...] = ()
    schema: str = SCHEMA

    @property
    def virtual(self) -> int:
        """Pipeline stages on each rank of the line."""
        return VIRTUAL.get(self.schedule, 1)

    def save(self, path: str | Path) -> None:
        """Writes the plan as JSON. Raises RunError when the place cannot be written."""
        try:
            Path(path).write_text(to_json(self) + "\n")
        except OSError as error:
            raise RunError(f"plan cannot be written to {path}: {error.strerror}") from None

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Reads what `save` wrote. Raises UsageError for a missing file, another schema, or a damaged one."""
        try:
            return cls.read(Path(path).read_text(), str(path))
        except OSError as error:
            raise UsageError(f"plan {path} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise UsageError(f"{path} is not a plan: it is no text") from None

    @classmethod
    def read(cls, text: str, source: str = "this text") -> Plan:
        """The plan that `to_json` wrote as `text`, which came from `source`. Raises UsageError as `load` does."""
        try:
            data = json.loads(text)
        except ValueError:
            raise UsageError(f"{source} is not a plan: it is no JSON") from None
        found = data.get("schema", SCHEMA) if isinstance(data, dict) else None
        if found != SCHEMA:
            raise UsageError(f"{source} is not a plan of this version ({SCHEMA}): its schema is {found!r}")
        try:
            return from_plain(cls, data)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise damaged(source, error) from error
