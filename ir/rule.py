"""One line says what an op computes, how it may be cut, and what that costs.

    b s d, f d -> b s f          a linear layer: cutting f cuts the output, cutting d leaves partial sums
    * !d, !d -> * !d             a norm: `!` marks a label that must stay whole, `*` any number of leading dims
    b s (h e) -> b s h e         a reshape: the major factor of a composite may be cut
    b s d, &v d, b s -> .        `&` marks a summed label that the op itself reduces over the axis; `.` is a scalar

From the line follow the legal cuts, the state each input must be in, the state of the output, and by duality the
backward: an input needed whole by a cut op has a gradient of partial sums (GSPMD, arXiv 2105.04663; Shardy's factors).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod

from fourfold.ir.graph import TOKENS

Dim = tuple[str, ...]
"""The labels of one tensor dim, major factor first; an uncut size-1 dim has none."""

WHOLE = "whole"
PARTIAL = "partial"


@dataclass(frozen=True, slots=True)
class State:
    """How one value lies on one mesh axis.

    kind "R": every rank holds all of it, and its gradient. "Q": needed whole by a cut op, so the gradient is partial
    sums. "P": partial sums of it. "S": dim `dim` is cut.
    """

    kind: str
    dim: int = -1

    def __str__(self) -> str:
        return f"S{self.dim}" if self.kind == "S" else self.kind

    @classmethod
    def parse(cls, text: str) -> State:
        """Reads what `str` wrote."""
        return cls("S", int(text[1:])) if text[0] == "S" else cls(text)


R, Q, P = State("R"), State("Q"), State("P")


@dataclass(frozen=True, slots=True)
class Rule:
    """One parsed line, bound to shapes: labels of each input dim and output dim, and each label's size."""

    inputs: tuple[tuple[Dim, ...], ...]
    output: tuple[Dim, ...]
    sizes: Mapping[str, int]
    fixed: frozenset[str]
    reduced: frozenset[str]
    linear: bool

    @property
    def summed(self) -> frozenset[str]:
        """Labels of the inputs that the output lacks."""
        kept = {label for dim in self.output for label in dim}
        return frozenset(label for dims in self.inputs for dim in dims for label in dim if label not in kept)

    def cuts(self, n: int) -> tuple[str, ...]:
        """What one axis of `n` ranks may do to this op: compute it whole, pass partial sums, or cut a label."""
        found = [WHOLE]
        if self.linear:
            found.append(PARTIAL)
        majors = dict.fromkeys(dim[0] for dims in (*self.inputs, self.output) for dim in dims if dim)
        found += [m for m in majors if m not in self.fixed and self._major_everywhere(m) and divides(n, self.sizes[m])]
        return tuple(found)

    def needs(self, cut: str) -> tuple[State, ...]:
        """The state each input must be in."""
        if cut == WHOLE:
            return (R,) * len(self.inputs)
        if cut == PARTIAL:
            return (P,) * len(self.inputs)
        return tuple(_cut_state(dims, cut) or Q for dims in self.inputs)

    def gives(self, cut: str) -> State:
        """The state of the output."""
        if cut == WHOLE or cut in self.reduced:
            return R
        if cut == PARTIAL:
            return P
        return _cut_state(self.output, cut) or P

    def points(self, tokens: int) -> int:
        """Product of all label sizes: one multiply-add each for a contraction."""
        return prod(tokens if size == TOKENS else size for size in self.sizes.values())

    def _major_everywhere(self, label: str) -> bool:
        return all(label not in dim[1:] for dims in (*self.inputs, self.output) for dim in dims)


def divides(n: int, size: int) -> bool:
    """Whether `n` ranks can cut a label of `size`; the token axis is padded so that they always can."""
    return size == TOKENS or (size % n == 0 and size >= n)


@lru_cache(maxsize=4096)
def bind(line: str, shapes: tuple[tuple[int, ...], ...], output: tuple[int, ...], *, linear: bool = False) -> Rule:
    """The rule of `line` on these input shapes; dims of size 1 that broadcast lose their label."""
    left, right = (part.strip() for part in line.split("->"))
    words = [_words(part) for part in left.split(",")][: len(shapes)]
    marks = {w[1:]: w[0] for part in (*words, _words(right)) for word in part for w in word if w[0] in "!&"}
    clean = [tuple(tuple(w.lstrip("!&") for w in word) for word in part) for part in (*words, _words(right))]
    rank = _star_rank(clean, (*shapes, output))
    bound = [_expand(part, len(shape), rank) for part, shape in zip(clean, (*shapes, output), strict=True)]
    sizes = _sizes(bound, (*shapes, output))
    inputs = tuple(_broadcast(dims, shape, sizes) for dims, shape in zip(bound[:-1], shapes, strict=True))
    fixed = frozenset(label for label, mark in marks.items() if mark == "!")
    reduced = frozenset(label for label, mark in marks.items() if mark == "&")
    return Rule(inputs, _broadcast(bound[-1], output, sizes), sizes, fixed, reduced, linear)


def _cut_state(dims: tuple[Dim, ...], cut: str) -> State | None:
    at = next((i for i, dim in enumerate(dims) if dim and dim[0] == cut), None)
    return None if at is None else State("S", at)


def _words(part: str) -> tuple[tuple[str, ...], ...]:
    found: list[tuple[str, ...]] = []
    group: list[str] | None = None
    for word in part.replace("(", " ( ").replace(")", " ) ").split():
        if word == "(":
            group = []
        elif word == ")":
            found.append(tuple(group or ()))
            group = None
        elif group is not None:
            group.append(word)
        elif word != ".":
            found.append((word,))
    return tuple(found)


def _star_rank(parts: list[tuple[Dim, ...]], shapes: tuple[tuple[int, ...], ...]) -> int:
    ranks = [len(shape) - len(part) + 1 for part, shape in zip(parts, shapes, strict=True) if ("*",) in part]
    return max(ranks, default=0)


def _expand(part: tuple[Dim, ...], ndim: int, rank: int) -> tuple[Dim, ...]:
    """Replaces `*` by numbered labels, aligned at the right as broadcasting is."""
    if ("*",) not in part:
        return part
    at = part.index(("*",))
    width = ndim - len(part) + 1
    stars = tuple((f"#{i}",) for i in range(rank - width, rank))
    return (*part[:at], *stars, *part[at + 1 :])


def _sizes(bound: list[tuple[Dim, ...]], shapes: tuple[tuple[int, ...], ...]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for dims, shape in zip(bound, shapes, strict=True):
        for dim, size in zip(dims, shape, strict=True):
            if len(dim) == 1 and sizes.get(dim[0], 1) == 1:
                sizes[dim[0]] = size
    for dims, shape in zip(bound, shapes, strict=True):
        for dim, size in zip(dims, shape, strict=True):
            _fill_factor(dim, size, sizes)
    return sizes


def _fill_factor(dim: Dim, size: int, sizes: dict[str, int]) -> None:
    """Infers the one unknown factor of a composite dim from its size."""
    unknown = [label for label in dim if label not in sizes]
    known = prod(sizes[label] for label in dim if label in sizes)
    for label in unknown[:1]:
        sizes[label] = size if size == TOKENS else size // known


def _broadcast(dims: tuple[Dim, ...], shape: tuple[int, ...], sizes: Mapping[str, int]) -> tuple[Dim, ...]:
    return tuple(
        () if size == 1 and all(sizes[x] != 1 for x in dim) else dim for dim, size in zip(dims, shape, strict=True)
    )
