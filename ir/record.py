"""What a sequence method does on one rank, listed: messages, waits and kernel calls, from its own code on meta tensors.

No data and no other rank is needed, so a plan is priced by the very functions that run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Literal

import torch
from torch import Tensor

from fourfold.ir.comm import Expected
from fourfold.ir.sequence.method import Job, Method, Sums, accumulation
from fourfold.ir.sequence.rectangles import Seen

Pass = Literal["forward", "backward"]


@dataclass(frozen=True, slots=True)
class Sent:
    """A message leaves for `peer`, a place in the whole group; messages of one number leave together."""

    name: str
    peer: int
    bytes: int
    number: int

    def __str__(self) -> str:
        return f"send {self.bytes} B to {self.peer} ({self.name} {self.number})"


@dataclass(frozen=True, slots=True)
class Waited:
    """The rank needs what exchange `number` brings: so many bytes from all peers together."""

    number: int
    bytes: int

    def __str__(self) -> str:
        return f"wait for {self.bytes} B ({self.number})"


@dataclass(frozen=True, slots=True)
class Ran:
    """A kernel call: `rows` queries against `keys` keys as stored, of which `pairs` are visible, in `rectangles`.

    pairs holds for one head: FLOPs of a forward call are 4 x pairs x heads x width.
    """

    kind: Pass
    pairs: int
    rectangles: int
    rows: int
    keys: int
    heads: int
    kv_heads: int
    width: int

    def __str__(self) -> str:
        heads = f"{self.heads}/{self.kv_heads} heads of {self.width}"
        return f"run {self.kind} {self.rows} x {self.keys}, {heads}: {self.pairs} pairs in {self.rectangles}"


Event = Sent | Waited | Ran


@dataclass(frozen=True, slots=True)
class Recording:
    """The events of one rank, in order."""

    forward: tuple[Event, ...]
    backward: tuple[Event, ...]

    def of(self, kind: Pass) -> tuple[Event, ...]:
        """The events of one pass."""
        return self.forward if kind == "forward" else self.backward

    def sent_bytes(self, kind: Pass) -> int:
        """What leaves this rank in a pass."""
        return sum(event.bytes for event in self.of(kind) if isinstance(event, Sent))

    def ran(self, kind: Pass) -> tuple[Ran, ...]:
        """The kernel calls of a pass."""
        return tuple(event for event in self.of(kind) if isinstance(event, Ran))

    def __str__(self) -> str:
        return "\n".join(["forward", *map(str, self.forward), "backward", *map(str, self.backward)])


@dataclass(frozen=True, slots=True)
class Listed:
    """An exchange of which nothing comes: what arrives has the shapes expected."""

    number: int
    expected: tuple[Expected, ...]
    events: list[Event]

    def wait(self) -> tuple[Tensor, ...]:
        found = tuple(torch.empty(x.shape, dtype=x.dtype, device="meta") for x in self.expected)
        size = sum(x.nbytes for x in found)
        if size:
            self.events.append(Waited(self.number, size))
        return found


@dataclass(frozen=True, slots=True)
class Record:
    """The place `here` among `members`, places of the whole group; exchanges are numbered over all its groups."""

    here: int
    members: tuple[int, ...]
    events: list[Event] = field(default_factory=list, repr=False)
    numbers: list[int] = field(default_factory=list, repr=False)

    @property
    def rank(self) -> int:
        return self.members.index(self.here)

    @property
    def size(self) -> int:
        return len(self.members)

    def exchange(
        self, name: str, sends: Sequence[tuple[int, Tensor]], receives: Sequence[Expected], *, like: Tensor
    ) -> Listed:
        sizes = [(self.members[peer], tensor.nbytes) for peer, tensor in sends if tensor.numel()]
        number = len(self.numbers)
        if sizes or any(prod(wanted.shape) for wanted in receives):
            self.numbers.append(number)
        self.events.extend(Sent(name, peer, size, number) for peer, size in sizes)
        return Listed(number, tuple(receives), self.events)

    def among(self, members: tuple[int, ...]) -> Record:
        return Record(self.here, tuple(self.members[m] for m in members), self.events, self.numbers)


@dataclass(frozen=True, slots=True)
class RecordBlock:
    """Kernels that only say that they were called."""

    events: list[Event] = field(repr=False)
    takes_delta: bool = True

    def empty(self, q_THD: Tensor) -> Sums:
        """Sums of the right shapes."""
        kind = accumulation(q_THD.dtype)
        tokens, heads, _ = q_THD.shape
        return Sums(torch.empty_like(q_THD, dtype=kind), q_THD.new_empty((heads, tokens), dtype=kind))

    def forward(self, sums: Sums, q_THD: Tensor, kv_2NGD: Tensor, seen: Seen, scale: float) -> None:
        """Lists the call."""
        self.events.append(_ran("forward", q_THD, kv_2NGD, seen))

    def merge(self, sums: Sums, out_MHD: Tensor, lse_HM: Tensor) -> None:
        """Moves little beside the kernels, and is not listed."""

    def backward(
        self,
        into: tuple[Tensor, Tensor],
        grad_THD: Tensor,
        q_THD: Tensor,
        kv_2NGD: Tensor,
        out: Tensor,
        lse_HT: Tensor,
        seen: Seen,
        scale: float,
    ) -> None:
        """Lists the call."""
        self.events.append(_ran("backward", q_THD, kv_2NGD, seen))


def record(
    method: Method,
    job: Job,
    rank: int,
    *,
    heads: int,
    kv_heads: int,
    width: int,
    dtype: torch.dtype,
    takes_delta: bool = True,
) -> Recording:
    """What `rank` does in one attention of a group of len(job.shards) ranks, forward and backward.

    takes_delta: what the kernels of the run say of themselves (Block). Kernel calls without a visible pair are listed.
    """
    tokens = job.shards[rank].tokens
    q_THD, grad_THD = (torch.empty((tokens, heads, width), dtype=dtype, device="meta") for _ in range(2))
    k_TGD, v_TGD = (torch.empty((tokens, kv_heads, width), dtype=dtype, device="meta") for _ in range(2))
    comm = Record(rank, tuple(range(len(job.shards))))
    block = RecordBlock(comm.events, takes_delta)
    _, saved = method.forward(comm, block, q_THD, k_TGD, v_TGD, job)
    forward = tuple(comm.events)
    method.backward(comm, block, grad_THD, saved, job)
    return Recording(forward, tuple(comm.events[len(forward) :]))


def _ran(kind: Pass, q_THD: Tensor, kv_2NGD: Tensor, seen: Seen) -> Ran:
    pairs = sum(one.pairs for one in seen)
    rows, heads, width = q_THD.shape
    return Ran(kind, pairs, len(seen), rows, kv_2NGD.shape[1], heads, kv_2NGD.shape[2], width)
