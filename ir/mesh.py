"""The ranks as a grid of four axes: pipeline x data x sequence x tensor, the last fastest unless ordered otherwise."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import product
from math import prod

AXES = ("pp", "dp", "sp", "tp")


@dataclass(frozen=True, slots=True)
class Mesh:
    """Degrees of the four axes. For one (pp, tp) coordinate the dp x sp ranks form one pool of tokens.

    `order` names the axes from the outermost to the innermost, whose ranks are neighbours: what lies inside a node.
    Data lies outside sequence, so that the ranks of a pool ascend as its places do: a process group sorts them.
    """

    dp: int = 1
    tp: int = 1
    pp: int = 1
    sp: int = 1
    order: tuple[str, ...] = AXES

    @property
    def ranks(self) -> int:
        """All ranks."""
        return self.dp * self.tp * self.pp * self.sp

    @property
    def pool(self) -> int:
        """Ranks that share the tokens of a step and the optimizer's shards."""
        return self.dp * self.sp

    @property
    def used(self) -> tuple[str, ...]:
        """The axes of more than one rank, from the outermost."""
        return tuple(axis for axis in self.order if getattr(self, axis) > 1)

    def ordered(self, axes: Iterable[str]) -> Mesh:
        """The mesh with its used axes in this order; the others keep their places, so that equal meshes are equal."""
        wanted = iter([axis for axis in axes if axis in self.used])
        return replace(self, order=tuple(next(wanted) if axis in self.used else axis for axis in AXES))

    def stride(self, axis: str) -> int:
        """How far apart neighbours along an axis are numbered."""
        inside = self.order[self.order.index(axis) + 1 :]
        return prod(int(getattr(self, name)) for name in inside)

    def place(self, rank: int, axis: str) -> int:
        """The coordinate of a rank on an axis ("pool": data before sequence)."""
        if axis == "pool":
            return self.place(rank, "dp") * self.sp + self.place(rank, "sp")
        return rank // self.stride(axis) % int(getattr(self, axis))

    def group(self, axis: str) -> tuple[int, ...]:
        """The ranks of the first group along `axis` ("pool" for dp x sp), in order."""
        if axis == "pool":
            return tuple(a + b for a, b in product(self.group("dp"), self.group("sp")))
        stride = self.stride(axis)
        return tuple(range(0, stride * int(getattr(self, axis)), stride))

    def groups(self, axis: str) -> list[list[int]]:
        """All groups along `axis` ("pool" for dp x sp), which hold each rank once."""
        along = ("dp", "sp") if axis == "pool" else (axis,)
        firsts = product(*(self.group(other) for other in AXES if other not in along))
        return sorted([sum(first) + rank for rank in self.group(axis)] for first in firsts)

    def __str__(self) -> str:
        return " x ".join(f"{axis}{getattr(self, axis)}" for axis in self.used) or "one rank"
