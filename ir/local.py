"""A group of ranks as threads of one process: what proves a sequence method equal to one device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import TypeVar

import torch
from torch import Tensor

from fourfold.ir.comm import Comm, Expected

T = TypeVar("T")

PATIENCE = 60.0
"""Seconds a rank waits for a message before it says that none comes."""

Post = dict[tuple[int, int, int], "SimpleQueue[Tensor]"]
"""A box for each message: from, to, and its number among those from the one to the other."""


@dataclass(frozen=True, slots=True)
class Arriving:
    """Messages to take from the boxes of their senders."""

    boxes: tuple[SimpleQueue[Tensor] | None, ...]
    expected: tuple[Expected, ...]
    like: Tensor

    def wait(self) -> tuple[Tensor, ...]:
        """Raises AssertionError for a message of another shape or dtype than expected."""
        found = []
        for box, wanted in zip(self.boxes, self.expected, strict=True):
            if box is None:
                found.append(self.like.new_empty(wanted.shape, dtype=wanted.dtype))
                continue
            tensor = box.get(timeout=PATIENCE)
            assert (tuple(tensor.shape), tensor.dtype) == (wanted.shape, wanted.dtype), (tensor.shape, wanted)
            found.append(tensor)
        return tuple(found)


@dataclass(frozen=True)
class Local:
    """One thread's place among `members`, which are places of the whole group; `sent` counts elements by name."""

    here: int
    members: tuple[int, ...]
    post: Post = field(repr=False)
    numbers: dict[tuple[int, int], int] = field(default_factory=dict, repr=False)
    sent: dict[str, int] = field(default_factory=dict, repr=False)

    @property
    def rank(self) -> int:
        return self.members.index(self.here)

    @property
    def size(self) -> int:
        return len(self.members)

    def exchange(
        self, name: str, sends: Sequence[tuple[int, Tensor]], receives: Sequence[Expected], *, like: Tensor
    ) -> Arriving:
        for peer, tensor in sends:
            if tensor.numel():
                self.sent[name] = self.sent.get(name, 0) + tensor.numel()
                self._box(self.here, self.members[peer]).put(tensor.clone())
        boxes = tuple(
            self._box(self.members[wanted.peer], self.here) if torch.Size(wanted.shape).numel() else None
            for wanted in receives
        )
        return Arriving(boxes, tuple(receives), like)

    def among(self, members: tuple[int, ...]) -> Local:
        return Local(self.here, tuple(self.members[m] for m in members), self.post, self.numbers, self.sent)

    def _box(self, source: int, to: int) -> SimpleQueue[Tensor]:
        """Of the next message between two ranks: exchanges match in the order they start, whichever is waited first."""
        number = self.numbers.get((source, to), 0)
        self.numbers[source, to] = number + 1
        return self.post.setdefault((source, to, number), SimpleQueue())


def together(n: int, work: Callable[[Comm], T]) -> tuple[T, ...]:
    """What `work` returns on each of n ranks; what one raises is raised."""
    post: Post = {}
    members = tuple(range(n))
    with ThreadPoolExecutor(n) as pool:
        return tuple(pool.map(lambda rank: work(Local(rank, members, post)), members))
