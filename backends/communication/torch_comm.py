"""A group of ranks over NCCL, RCCL or gloo: every exchange is point-to-point, issued together, on one communicator.

Any tuple of ranks of the pool may form a group, as no process group is made for it. Source of the rule: one
communicator a queue, made once; between two ranks messages arrive in the order they were sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

import torch
import torch.distributed as dist
from torch import Tensor

from fourfold.ir.comm import Expected


@dataclass(frozen=True, slots=True)
class Flying:
    """Messages under way; they hold what is sent until it has left."""

    works: tuple[dist.Work, ...]
    sent: tuple[Tensor, ...]
    received: tuple[Tensor, ...]

    def wait(self) -> tuple[Tensor, ...]:
        """What arrived; on a GPU the current stream waits, not the host."""
        for work in self.works:
            work.wait()
        return self.received


@dataclass(frozen=True, slots=True)
class TorchComm:
    """This process among `members`, global ranks in order, on the communicator of `group` (None: it is alone)."""

    members: tuple[int, ...]
    group: dist.ProcessGroup | None
    rank: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rank", self.members.index(dist.get_rank()))

    @property
    def size(self) -> int:
        return len(self.members)

    def exchange(
        self, name: str, sends: Sequence[tuple[int, Tensor]], receives: Sequence[Expected], *, like: Tensor
    ) -> Flying:
        """All messages as one batch."""
        sent = [(peer, tensor.contiguous()) for peer, tensor in sends if tensor.numel()]
        received = [torch.empty(wanted.shape, dtype=wanted.dtype, device=like.device) for wanted in receives]
        ops = [dist.P2POp(dist.isend, tensor, self.members[peer], self.group) for peer, tensor in sent]
        ops += [
            dist.P2POp(dist.irecv, tensor, self.members[wanted.peer], self.group)
            for tensor, wanted in zip(received, receives, strict=True)
            if prod(wanted.shape)
        ]
        works = dist.batch_isend_irecv(ops) if ops else []
        return Flying(tuple(works), tuple(tensor for _, tensor in sent), tuple(received))

    def among(self, members: tuple[int, ...]) -> TorchComm:
        """The same process in a smaller group."""
        return TorchComm(tuple(self.members[m] for m in members), self.group)
