"""What moves when a value made in one state is needed in another: one row a pair, forward and, by duality, backward.

R and Q both mean whole; they differ in the gradient. R's is whole on every rank (a whole op reads it), Q's is partial
sums (a cut op reads it). So R -> Q moves nothing forward and reduces backward, and S -> Q gathers and reduce-scatters
where S -> R gathers and slices (Megatron-LM's f, g and their sequence-cut forms, arXiv 1909.08053 and 2205.05198).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from fourfold.ir.rule import State


@dataclass(frozen=True, slots=True)
class Move:
    """One collective or local step on the axis. `dim` is the dim cut before or after it; `to` the other one.

    op: "all_gather", "reduce_scatter", "all_reduce", "all_to_all", or the local "slice", "scale", "keep".
    """

    op: str
    dim: int = -1
    to: int = -1

    @property
    def local(self) -> bool:
        """Whether nothing crosses a link."""
        return self.op in ("slice", "scale", "keep")


@dataclass(frozen=True, slots=True)
class Conversion:
    """The move of a value, and that of its gradient."""

    forward: Move
    backward: Move


_MOVES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "R>Q": ("keep", "all_reduce"),
        "R>S": ("slice", "all_gather"),
        "R>P": ("scale", "keep"),
        "S>R": ("all_gather", "slice"),
        "S>Q": ("all_gather", "reduce_scatter"),
        "S>S": ("all_to_all", "all_to_all"),
        "P>R": ("all_reduce", "keep"),
        "P>Q": ("all_reduce", "all_reduce"),
        "P>S": ("reduce_scatter", "all_gather"),
    }
)


def conversion(made: State, needed: State) -> Conversion | None:
    """How a value in state `made` becomes `needed`; None when it already is. S -> P and Q have no move: ValueError."""
    if made == needed:
        return None
    key = f"{made.kind}>{needed.kind}"
    if key not in _MOVES:
        raise ValueError(f"no conversion from {made} to {needed}")
    forward, backward = _MOVES[key]
    if key == "S>S":
        return Conversion(Move(forward, made.dim, needed.dim), Move(backward, needed.dim, made.dim))
    dim = made.dim if made.kind == "S" else needed.dim
    return Conversion(Move(forward, dim), Move(backward, dim))


def convertible(made: State, needed: State) -> bool:
    """Whether `conversion` has an answer."""
    return made == needed or f"{made.kind}>{needed.kind}" in _MOVES
