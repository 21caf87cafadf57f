"""What verify answers: one line per comparison, the worst of them, and whether all hold."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fourfold.ir.serial import to_plain

TENSORS = ("gradient", "sgd", "adamw")
"""What is compared of each tensor: its gradient, then the parameter after one step of SGD, then after AdamW's."""
WIDTH = 80
"""Columns of the text."""


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison: what (`kind`), of which tensor or number (`name`), how far off, and how far it may be."""

    kind: str
    name: str
    error: float
    limit: float
    detail: str = ""

    @property
    def passed(self) -> bool:
        """Whether the error is a number within the limit."""
        return self.error <= self.limit


@dataclass(frozen=True, slots=True)
class Placed:
    """What a policy made of the batch: teams of several ranks, pieces that are chunks of a document, moves."""

    policy: str
    shared: int
    chunks: int
    moves: int

    def __str__(self) -> str:
        counts = ((self.shared, "shared team"), (self.chunks, "chunk"), (self.moves, "move"))
        words = (f"{n} {word}{'s' * (n != 1)}" for n, word in counts)
        return f"placed by {self.policy}: {', '.join(words)}"


@dataclass(frozen=True, slots=True)
class Report:
    """All checks of one plan, and under what they were made; `micro_steps` of the rank that has most."""

    model: str
    layout: str
    ranks: int
    dtype: str
    lengths: tuple[int, ...]
    micro_steps: int
    checks: tuple[Check, ...]
    seconds: float
    notes: tuple[str, ...] = ()
    placed: Placed | None = None

    @property
    def passed(self) -> bool:
        """Whether every check holds."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that do not hold."""
        return tuple(check for check in self.checks if not check.passed)

    @property
    def worst(self) -> Check:
        """The tensor that is furthest off."""
        tensors = [c for c in self.checks if c.kind in TENSORS]
        return max(tensors, key=lambda c: math.inf if math.isnan(c.error) else c.error)

    def plain(self) -> dict[str, object]:
        """As JSON takes it, with the verdict; an error that is no number is written as text."""
        found: dict[str, object] = to_plain(self)
        found["checks"] = [to_plain(c) | {"error": _number(c.error), "passed": c.passed} for c in self.checks]
        return {"passed": self.passed, "worst": {"name": self.worst.name, "error": _number(self.worst.error)}, **found}

    def __str__(self) -> str:
        """Every tensor with its three errors, then the numbers, then the verdict."""
        head = f"{self.model} in {self.dtype} on {self.ranks} {'rank' if self.ranks == 1 else 'ranks'}: {self.layout}"
        lengths = f"{len(self.lengths)} documents of {min(self.lengths)} to {max(self.lengths)} tokens"
        most = "" if self.placed is None else "up to "
        batch = f"{lengths}, {most}{self.micro_steps} micro-step{'s' * (self.micro_steps != 1)} a rank"
        notes = self.notes if self.placed is None else (str(self.placed), *self.notes)
        return "\n".join([head, batch, *notes, "", *self._tensors(), "", *self._numbers(), "", self.verdict])

    @property
    def verdict(self) -> str:
        """One line: passed or not, and the worst tensor."""
        worst = f"worst tensor {self.worst.name} ({self.worst.kind}) {self.worst.error:.1e}, limit {self.worst.limit:g}"
        if self.passed:
            return f"passed: {worst}; {self.seconds:.1f} s"
        return f"FAILED in {len(self.failures)} of {len(self.checks)} checks: {worst}; {self.seconds:.1f} s"

    def _tensors(self) -> list[str]:
        table: dict[str, dict[str, Check]] = {}
        for check in self.checks:
            if check.kind in TENSORS:
                table.setdefault(check.name, {})[check.kind] = check
        width = max((len(name) for name in table), default=6)
        kinds = [k for k in TENSORS if any(k in row for row in table.values())]
        lines = [f"{'tensor':<{width}}" + "".join(f"{kind:>12}" for kind in kinds)]
        for name, row in table.items():
            lines.append(f"{name:<{width}}" + "".join(_cell(row.get(kind)) for kind in kinds))
        return lines

    def _numbers(self) -> list[str]:
        rest = [c for c in self.checks if c.kind not in TENSORS]
        names = [f"{c.kind} {c.name}".strip() for c in rest]
        width = max((len(n) for n in names), default=0)
        lines = [f"{n:<{width}}{_cell(c)}".rstrip() for n, c in zip(names, rest, strict=True)]
        return [_with_detail(line, c.detail) for line, c in zip(lines, rest, strict=True)]


def _cell(check: Check | None) -> str:
    if check is None:
        return f"{'-':>12}"
    return f"{check.error:>11.1e}{' ' if check.passed else '!'}"


def _with_detail(line: str, detail: str) -> str:
    """The detail behind the number, or under it where the line would be too long."""
    return f"{line}  {detail}".rstrip() if len(line) + len(detail) + 2 <= WIDTH else f"{line}\n    {detail}"


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
