"""What the tables hold: one `Op` per operation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fourfold.ir.graph import Node

Shapes = tuple[tuple[int, ...], ...]
Line = str | Callable[[Node, Shapes], str | tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Op:
    """`line` is the rule (or makes it from a node's arguments); `kind` is how its time is priced.

    kind: "matmul" (FLOPs = 2 x points), "pointwise" and "norm" (bytes), "free" (no kernel of its own), "gather"
    (rows read), "attention", "loss". `linear` says that partial sums may pass through when all inputs are partial.
    """

    line: Line
    kind: str
    linear: bool | Callable[[Node], bool] = False


def letters(n: int, start: int = 0) -> list[str]:
    """`n` fresh labels: d0 d1 ..."""
    return [f"d{i}" for i in range(start, start + n)]
