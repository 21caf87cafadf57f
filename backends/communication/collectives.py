"""The moves of ir/conversion.py on real tensors: functional collectives inside autograd functions Dynamo can trace."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from fourfold.ir.conversion import Conversion, Move

ops = torch.ops._c10d_functional


@dataclass(frozen=True, slots=True)
class Axis:
    """One mesh axis as this rank sees it: its process group by name, its size, and the rank's place on it."""

    group: str = ""
    size: int = 1
    rank: int = 0


def all_gather(x: Tensor, move: Move, axis: Axis) -> Tensor:
    """The parts of all ranks joined along `move.dim`."""
    first = _dim_first(x, move.dim)
    out = ops.wait_tensor(ops.all_gather_into_tensor(first.contiguous(), axis.size, axis.group))
    return _dim_back(out, move.dim, x.dim())


def reduce_scatter(x: Tensor, move: Move, axis: Axis) -> Tensor:
    """The sum over all ranks, this rank's part of it along `move.dim`."""
    first = _dim_first(x, move.dim)
    out = ops.wait_tensor(ops.reduce_scatter_tensor(first.contiguous(), "sum", axis.size, axis.group))
    return _dim_back(out, move.dim, x.dim())


def all_reduce(x: Tensor, move: Move, axis: Axis) -> Tensor:
    """The sum over all ranks, whole."""
    found: Tensor = ops.wait_tensor(ops.all_reduce(x.contiguous(), "sum", axis.group))
    return found


def all_to_all(x: Tensor, move: Move, axis: Axis) -> Tensor:
    """From cut along `move.dim` to cut along `move.to`."""
    parts = torch.cat([_dim_first(p, 0) for p in x.chunk(axis.size, move.to)], 0).contiguous()
    rows = [parts.shape[0] // axis.size] * axis.size
    out = ops.wait_tensor(ops.all_to_all_single(parts, rows, rows, axis.group))
    return torch.cat(out.chunk(axis.size, 0), move.dim)


def part(x: Tensor, move: Move, axis: Axis) -> Tensor:
    """This rank's part along `move.dim`."""
    return x.chunk(axis.size, move.dim)[axis.rank].contiguous()


def scale(x: Tensor, move: Move, axis: Axis) -> Tensor:
    """A whole value as equal partial sums."""
    return x / axis.size


def keep(x: Tensor, move: Move, axis: Axis) -> Tensor:
    """Nothing moves."""
    return x.clone()


MOVES: Mapping[str, Callable[[Tensor, Move, Axis], Tensor]] = MappingProxyType(
    {
        "all_gather": all_gather,
        "reduce_scatter": reduce_scatter,
        "all_reduce": all_reduce,
        "all_to_all": all_to_all,
        "slice": part,
        "scale": scale,
        "keep": keep,
    }
)


Words = tuple[str, int, int]
"""A move, or an axis, as plain values: what a traced graph can hold."""


class _Convert(torch.autograd.Function):
    """Forward one move, backward its dual."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, forward: Words, backward: Words, axis: Words) -> Tensor:
        ctx.move, ctx.axis = backward, axis
        return MOVES[forward[0]](x, Move(*forward), Axis(*axis))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        move, axis = Move(*ctx.move), Axis(*ctx.axis)
        return MOVES[move.op](grads[0], move, axis), None, None, None


def convert(x: Tensor, forward: Words, backward: Words, axis: Words) -> Tensor:
    """`x` moved, with the dual move for its gradient."""
    moved: Tensor = _Convert.apply(x, forward, backward, axis)  # type: ignore[no-untyped-call]
    return moved


def conversion_words(conversion: Conversion, axis: Axis) -> tuple[Words, Words, Words]:
    """The arguments of `convert`."""
    moves = ((m.op, m.dim, m.to) for m in (conversion.forward, conversion.backward))
    return (*moves, (axis.group, axis.size, axis.rank))  # type: ignore[return-value]


def _dim_first(x: Tensor, dim: int) -> Tensor:
    """`dim` in front; free when the dims before it have size 1."""
    return x if dim == 0 else x.movedim(dim, 0)


def _dim_back(x: Tensor, dim: int, rank: int) -> Tensor:
    """The first dim back at its place, in memory too: elementwise ops keep the strides they meet, for a whole model."""
    return x if dim == 0 else x.movedim(0, dim).contiguous()
