"""From options to what the planner takes: model, machine, workload, precision; and what was assumed on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fourfold.compiler.cli import values
from fourfold.hardware.errors import UsageError
from fourfold.ir.text import Section

if TYPE_CHECKING:
    from torch import nn

    from fourfold.hardware.topology import Machine
    from fourfold.ir.plan import Precision
    from fourfold.ir.workload import Workload

LENGTHS = Path(__file__).resolve().parent.parent / "lengths"
LENGTH, TOKENS = "8k", "4M"
Scalar = int | float | bool | str


@dataclass(frozen=True, slots=True)
class Question:
    """The options of `plan`, as given; None where not."""

    model: str
    hardware: str | None
    length: str | None = None
    lengths: str | None = None
    tokens: str | None = None
    optimizer: str | None = None
    precision: str | None = None
    pins: Sequence[str] = ()
    overrides: Sequence[str] = ()

    def assumed(self, precision: str) -> Section:
        """What the planner takes where nothing was said: the option, and its value."""
        rows = []
        if self.length is None and self.lengths is None:
            rows.append(("--length", f"{LENGTH}, {values.tokens(LENGTH, ''):,} tokens a sequence"))
        if self.tokens is None:
            rows.append(("--tokens-per-step", f"{TOKENS}, {values.tokens(TOKENS, ''):,} tokens"))
        if self.optimizer is None:
            rows.append(("--optimizer", "adamw"))
        if self.precision is None:
            rows.append(("--precision", precision))
        return Section("Assumed, for nothing was said", tuple(rows))


@dataclass(frozen=True, slots=True)
class Asked:
    """What the options mean, checked."""

    machine: Machine
    workload: Workload
    optimizer: str | float
    precision: Precision
    pins: Mapping[str, str | int] = field(default_factory=dict)
    overrides: Mapping[str, Scalar] = field(default_factory=dict)
    word: str = ""


def asked(question: Question) -> Asked:
    """Everything but the model. Raises UsageError and ProfileError; loads neither torch nor a solver."""
    from fourfold.hardware import load

    if question.hardware is None:
        raise UsageError("which machine? give --hardware NAME; `fourfold hardware list` shows the names")
    pins, overrides = values.pins(question.pins), values.pairs(question.overrides, "--set")
    load_of = workload(question.length, question.lengths, question.tokens)
    machine = load(question.hardware)
    word = question.precision or usual(machine)
    return Asked(machine, load_of, optimizer(question.optimizer), precision(word), pins, overrides, word)


def workload(length: str | None, lengths: str | None, per_step: str | None) -> Workload:
    """Sequences of one length, or lengths from a file or a shipped list."""
    from fourfold.ir.workload import Workload

    total = values.tokens(TOKENS if per_step is None else per_step, "--tokens-per-step")
    if lengths is not None:
        if length is not None:
            raise UsageError("--length and --lengths say two things; give one")
        return Workload.sample(lengths_file(lengths), tokens_per_step=total)
    each = values.tokens(LENGTH if length is None else length, "--length")
    if each > total:
        raise UsageError(f"--tokens-per-step {total:,} holds no sequence of --length {each:,}")
    return Workload.fixed(length=each, sequences=round(total / each))


def lengths_file(name: str) -> Path:
    """A file of that path, or the shipped list of that name."""
    shipped = {path.stem: path for path in sorted(LENGTHS.glob("*.txt"))}
    if name in shipped:
        return shipped[name]
    if not Path(name).exists():
        raise UsageError(f"--lengths {name!r} is neither a file nor one of {', '.join(shipped)}")
    return Path(name)


def optimizer(text: str | None) -> str | float:
    """A known name, or bytes per parameter."""
    from fourfold.ir.plan import Optimizer

    word = text or "adamw"
    number = word.replace(".", "", 1).isdigit()
    Optimizer.named(float(word) if number else word)
    return float(word) if number else word


def usual(machine: Machine) -> str:
    """bf16 where the device computes faster in it, else fp32."""
    peak = machine.device.peak
    return "bf16" if peak.get("bf16", 0.0) > peak.get("fp32", 0.0) else "fp32"


def precision(word: str) -> Precision:
    """bf16, fp32 or fp64."""
    from fourfold.ir.plan import Precision

    known = {"bf16": Precision.bf16, "fp32": Precision.fp32, "fp64": Precision.fp64}
    if word not in known:
        raise UsageError(f"--precision {word!r} is not known; give {', '.join(known)}")
    return known[word]


def model_of(reference: str, overrides: Mapping[str, Scalar], *, small: bool = False, real: bool = False) -> nn.Module:
    """The module that `reference` names; `small` takes a shipped model's tiny form. Only a `real` one holds weights.

    Raises ModelError and UsageError.
    """
    import torch

    from fourfold.compiler.models import from_reference

    with torch.device("cpu" if real else "meta"):
        return from_reference(reference, overrides, small=small)
