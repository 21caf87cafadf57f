"""Prints, as JSON, what torch's own tracker sees fully_shard hold at most; a process of its own, no data moves.

One rank of a group whose collectives do nothing; memory does not depend on values.
"""

from __future__ import annotations

import copy
import json
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.down(torch.relu(self.up(x)))
        return x + y


class Model(nn.Module):
    def __init__(self, *, width: int, blocks: int, vocabulary: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        logits: torch.Tensor = self.head(x)
        return logits


def sharded(model: Model, *, zero: int, pool: int) -> Model:
    shape = (pool, 1) if zero == 0 else (pool,)
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard")[: len(shape)])
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=zero == 3)
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    return model


def step(model: Model, *, zero: int, micro_steps: int, tracker: FSDPMemTracker | None = None) -> None:
    assert isinstance(model, FSDPModule)
    for index in range(micro_steps):
        last = index == micro_steps - 1
        model.set_requires_gradient_sync(last or zero >= 2)
        model.set_reshard_after_backward(last or zero == 3)
        if tracker is not None:
            tracker.reset_mod_stats()
        model(torch.zeros(1, 4, dtype=torch.long)).float().sum().backward()


def peaks(*, zero: int, pool: int, micro_steps: int, **sizes: int) -> tuple[int, int]:
    """Bytes at the fullest moment of forward and backward, and of the whole step, activations included."""
    dist.init_process_group("fake", rank=0, world_size=pool, store=FakeStore())
    model = sharded(Model(**sizes), zero=zero, pool=pool)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
    step(model, zero=zero, micro_steps=micro_steps)  # afterwards the optimizer's state exists
    optimizer.step()
    optimizer.zero_grad()
    tracker = FSDPMemTracker(model, optimizer)
    with tracker:
        step(model, zero=zero, micro_steps=micro_steps, tracker=tracker)
        backward = copy.deepcopy(tracker.get_tracker_snapshot("peak"))
        optimizer.step()
        whole = tracker.get_tracker_snapshot("peak")
    dist.destroy_process_group()
    return total(backward), total(whole)


def total(snapshot: dict[torch.device, dict[str, int]]) -> int:
    return snapshot[torch.device("cpu")]["Total"]


if __name__ == "__main__":
    print(json.dumps([peaks(**case) for case in json.loads(sys.argv[1])]))
