"""Parameters that several pipeline stages read: each holds a copy, gradients are added, the first one's counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from fourfold.backends.stage.engine import Engine
from fourfold.ir.stages import shared_parameters


class Tied:
    """The copies of this rank, by name, with the ranks of its line of stages that hold one."""

    def __init__(self, engine: Engine, root: nn.Module) -> None:
        self.engine, self.held = engine, dict(root.named_parameters())
        pp, wire = engine.plan.mesh.pp, engine.ranks.wire
        found = shared_parameters(engine.graph, engine.stages) if pp > 1 else {}
        homes = {name: tuple(dict.fromkeys(s % pp for s in numbers)) for name, numbers in found.items()}
        self.homes: Mapping[str, tuple[int, ...]] = {
            name: tuple(wire.members[at] for at in ranks)
            for name, ranks in homes.items()
            if len(ranks) > 1 and name in self.held
        }

    @property
    def copies(self) -> frozenset[int]:
        """Ids of parameters of this rank that an earlier rank owns: they count there, in the norm and on disk."""
        here = self.engine.ranks.rank
        return frozenset(id(self.held[name]) for name, ranks in self.homes.items() if ranks[0] != here)

    def reduce(self, stage: int) -> None:
        """Adds the gradients of all copies, the same sum on every rank that holds one. A collective of these ranks."""
        for name, ranks in self.homes.items():
            if self.held[name].requires_grad:
                _add(self.held[name], ranks, self.engine.ranks)


def _add(parameter: nn.Parameter, homes: tuple[int, ...], ranks: Any) -> None:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    own: Tensor = parameter.grad.to_local() if isinstance(parameter.grad, DTensor) else parameter.grad
    others = [rank for rank in homes if rank != ranks.rank]
    sent, arriving = own.clone(), {rank: torch.empty_like(own) for rank in others}
    ops = [dist.P2POp(dist.isend, sent, rank, ranks.wire.group) for rank in others]
    ops += [dist.P2POp(dist.irecv, arriving[rank], rank, ranks.wire.group) for rank in others]
    for work in dist.batch_isend_irecv(ops) if own.numel() else ():
        work.wait()
    # Added in the order of ranks, so that all copies stay alike to the bit.
    total = torch.zeros_like(own)
    for rank in homes:
        total += sent if rank == ranks.rank else arriving[rank]
    own.copy_(total)
