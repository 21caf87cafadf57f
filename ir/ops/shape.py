"""Ops that only move elements: reshape, permute, expand, slice, concatenate, repeat."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from fourfold.ir.graph import TOKENS, Node
from fourfold.ir.ops.op import Op, Shapes, letters


def view(node: Node, shapes: Shapes) -> str:
    """Joins the factors of both shapes: `(1 T 128) -> (1 T 8 16)` gives `d0 (d1 d2) -> d0 d1 d2`."""
    left, right = _factors(shapes[0], node.value.shape)
    return f"{' '.join(left)} -> {' '.join(right)}" if right else f"{' '.join(left)} -> ."


def _factors(source: tuple[int, ...], target: tuple[int, ...]) -> tuple[list[str], list[str]]:
    """Groups dims of equal product from the left; inside a group one side must be a single dim to be cut."""
    left, right, i, j, label = [], [], 0, 0, 0
    while i < len(source) or j < len(target):
        group_i, group_j = _group(source, target, i, j)
        ins, outs = source[i : i + group_i], target[j : j + group_j]
        names = letters(max(1, group_i, group_j), label)
        label += len(names)
        words_in, words_out = _group_words(ins, outs, names)
        left += words_in
        right += words_out
        i, j = i + group_i, j + group_j
    return left, right


def _group(source: tuple[int, ...], target: tuple[int, ...], i: int, j: int) -> tuple[int, int]:
    """How many dims of each side multiply to the same size, starting at i and j."""
    if i < len(source) and source[i] == 1 and (j >= len(target) or target[j] != 1):
        return 1, 0
    if j < len(target) and target[j] == 1 and (i >= len(source) or source[i] != 1):
        return 0, 1
    a, b, x, y = 1, 1, source[i], target[j]
    while x != y or (TOKENS in (x, y) and x != y):
        if _smaller(x, y):
            x, a = _times(x, source[i + a]), a + 1
        else:
            y, b = _times(y, target[j + b]), b + 1
    return a, b


def _smaller(x: int, y: int) -> bool:
    """Compares sizes in which tokens (negative multiples of TOKENS) count as larger than any number."""
    return y < 0 <= x or ((x < 0) == (y < 0) and abs(x) < abs(y))


def _times(x: int, y: int) -> int:
    return x * y if x > 0 or y > 0 else -abs(x * y)


def _group_words(ins: tuple[int, ...], outs: tuple[int, ...], names: list[str]) -> tuple[list[str], list[str]]:
    if len(ins) == len(outs) == 1:
        return [names[0]], [names[0]]
    if len(ins) == 1 and outs:
        return ["(" + " ".join(names) + ")"], names
    if len(outs) == 1 and ins:
        return names, ["(" + " ".join(names) + ")"]
    if not ins or not outs:
        return ["!" + n for n in names[: len(ins)]], ["!" + n for n in names[: len(outs)]]
    # Several dims on both sides with no common boundary: nothing of it can be cut.
    return [f"!{names[0]}i{k}" for k in range(len(ins))], [f"!{names[0]}o{k}" for k in range(len(outs))]


def permute(node: Node, shapes: Shapes) -> str:
    """`d0 d1 d2 -> d0 d2 d1`, from the dims in `args[1]`."""
    dims = letters(len(shapes[0]))
    order = node.args[1]
    assert isinstance(order, tuple)
    return f"{' '.join(dims)} -> {' '.join(dims[int(str(d))] for d in order)}"


def expand(node: Node, shapes: Shapes) -> str:
    """New or stretched dims are labels of the output alone."""
    rank = len(node.value.shape)
    right = letters(rank)
    offset = rank - len(shapes[0])
    left = [right[offset + i] if size != 1 else f"!one{i}" for i, size in enumerate(shapes[0])]
    return f"{' '.join(left) or '.'} -> {' '.join(right)}"


def piece(node: Node, shapes: Shapes) -> str:
    """A slice along dim `args[1]`: that dim must be whole."""
    dims = letters(len(shapes[0]))
    at = int(str(node.args[1])) % len(dims)
    left, right = list(dims), list(dims)
    left[at], right[at] = "!whole", "!piece"
    return f"{' '.join(left)} -> {' '.join(right)}"


def select(node: Node, shapes: Shapes) -> str:
    """One index of dim `args[1]`: that dim must be whole and is gone."""
    dims = letters(len(shapes[0]))
    at = int(str(node.args[1])) % len(dims)
    left = [("!whole" if i == at else d) for i, d in enumerate(dims)]
    return f"{' '.join(left)} -> {' '.join(d for i, d in enumerate(dims) if i != at) or '.'}"


def cat(node: Node, shapes: Shapes) -> str:
    """Joined along dim `args[1]`, which must be whole in every input."""
    dims = letters(len(shapes[0]))
    at = int(str(node.args[1])) % len(dims)
    parts = [" ".join(f"!part{k}" if i == at else d for i, d in enumerate(dims)) for k in range(len(shapes))]
    return f"{', '.join(parts)} -> {' '.join('!joined' if i == at else d for i, d in enumerate(dims))}"


def stack(node: Node, shapes: Shapes) -> str:
    """A new dim at `args[1]`."""
    dims = letters(len(shapes[0]))
    at = int(str(node.args[1])) % (len(dims) + 1)
    right = [*dims[:at], "!stacked", *dims[at:]]
    return f"{', '.join(' '.join(dims) for _ in shapes)} -> {' '.join(right)}"


def repeat(node: Node, shapes: Shapes) -> str:
    """Each element of dim `args[2]` repeated: `g -> (g r)`."""
    dims = letters(len(shapes[0]))
    at = int(str(node.args[2])) % len(dims)
    right = [f"({d} repeat)" if i == at else d for i, d in enumerate(dims)]
    return f"{' '.join(dims)} -> {' '.join(right)}"


SHAPES: Mapping[str, Op] = MappingProxyType(
    {
        "arange": Op(". -> !d0", "free"),
        "view": Op(view, "free", linear=True),
        "permute": Op(permute, "free", linear=True),
        "expand": Op(expand, "free", linear=True),
        "slice": Op(piece, "free", linear=True),
        "select": Op(select, "free", linear=True),
        "cat": Op(cat, "pointwise", linear=True),
        "stack": Op(stack, "pointwise", linear=True),
        "repeat": Op(repeat, "pointwise", linear=True),
    }
)
