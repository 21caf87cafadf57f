"""How the ranks of a group talk inside a sequence method: one primitive, and the collectives made of it.

A method is written once against `Comm`: threads of one process prove it, a recorder prices it, NCCL and gloo run it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Expected:
    """A tensor that `peer` will send: its shape and dtype."""

    peer: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class Handle(Protocol):
    """An exchange under way; it owns what is sent and received until it is waited for."""

    def wait(self) -> tuple[Tensor, ...]:
        """What arrived, in the order it was expected."""
        ...


class Comm(Protocol):
    """This rank's place in a group. Peers are places in the group, from 0 to size - 1."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def exchange(
        self, name: str, sends: Sequence[tuple[int, Tensor]], receives: Sequence[Expected], *, like: Tensor
    ) -> Handle:
        """Starts to send and receive, all at once. Between two ranks, messages arrive in the order they were sent.

        Empty tensors do not travel. `name` says what it is for; `like` is on the device where things arrive.
        """
        ...

    def among(self, members: tuple[int, ...]) -> Comm:
        """The same rank in a smaller group, of which it is a member."""
        ...


def shift(comm: Comm, tensors: Sequence[Tensor], by: int, shapes: Sequence[tuple[int, ...]]) -> Handle:
    """Every rank's tensors to the rank `by` places on; what arrives has `shapes`."""
    to, source = (comm.rank + by) % comm.size, (comm.rank - by) % comm.size
    expected = [Expected(source, shape, x.dtype) for shape, x in zip(shapes, tensors, strict=True)]
    return comm.exchange("shift", [(to, x) for x in tensors], expected, like=tensors[0])


def all_gather(comm: Comm, tensor: Tensor, shapes: Sequence[tuple[int, ...]]) -> Handle:
    """Every other rank's tensor, in the order of ranks; `shapes` of all ranks."""
    others = [peer for peer in range(comm.size) if peer != comm.rank]
    expected = [Expected(peer, shapes[peer], tensor.dtype) for peer in others]
    return comm.exchange("all_gather", [(peer, tensor) for peer in others], expected, like=tensor)


Shapes = Sequence[tuple[int, ...]]
"""Of what each rank has for this one."""


def all_to_all(comm: Comm, tensors: Sequence[tuple[Sequence[Tensor], Shapes]], name: str = "all_to_all") -> Handle:
    """Part p of each tensor to rank p, at once; of one after the other, what every other rank in order has for this."""
    others = [peer for peer in range(comm.size) if peer != comm.rank]
    sends = [(peer, parts[peer]) for parts, _ in tensors for peer in others]
    expected = [Expected(peer, shapes[peer], parts[peer].dtype) for parts, shapes in tensors for peer in others]
    return comm.exchange(name, sends, expected, like=tensors[0][0][comm.rank])


def with_own(comm: Comm, arrived: Sequence[Tensor], own: Tensor) -> list[Tensor]:
    """What arrived from the others, with this rank's own in its place."""
    return [*arrived[: comm.rank], own, *arrived[comm.rank :]]
