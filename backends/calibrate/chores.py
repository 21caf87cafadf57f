"""Times what the program does between kernels, where one processor runs both: sharded units and the optimizer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Shard

from fourfold.backends import compat
from fourfold.backends.batch.batching import pack
from fourfold.backends.batch.sequences import Limits, digest, documents
from fourfold.backends.calibrate.ask import Ask
from fourfold.backends.calibrate.clock import Clock
from fourfold.backends.communication.collectives import convert
from fourfold.backends.step.clip import clip_grad_norm_
from fourfold.hardware.machine import Chore

UNITS = 3
SEQUENCES = 16
TENSORS = 9
"""Parameters of a unit: what a block of a Llama has."""
SMALL, LARGE = 16, 256
"""Rows and columns of each parameter: so small that only the overhead shows, and large enough for a rate."""
UPDATED = 10
"""Numbers read or written for each parameter by clipping (3) and AdamW (3 for the parameter, 4 for its state)."""
FASTEST = 100e9
"""Bytes per second of a chore whose time does not grow with its bytes."""


@dataclass(frozen=True, slots=True)
class _Times:
    """Seconds of one step over all units: forward, backward, both with nothing to move, clipping and optimizer."""

    forward: float
    backward: float
    idle_forward: float
    idle_backward: float
    update: float


class _Unit(nn.Module):
    """Parameters, and next to no work with them."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(side, side) * 0.01) for _ in range(TENSORS))

    def forward(self, x: Tensor) -> Tensor:
        for weight in self.weights:
            x = x * weight[0]
        return x


def chores(ask: Ask, rank: int) -> dict[str, Chore]:
    """The chores of this rank by name, all ranks at once; each is a pool of its own, so that no message is counted.

    What is gathered from one rank and reduced over one is copied as often as with many.
    """
    grid = init_device_mesh("cpu", (dist.get_world_size(), 1), mesh_dim_names=("apart", "pool"))
    clock, rounds = ask.clock(torch.device("cpu")), 5 if ask.quick else 15
    small, large = (_cost(side, grid["pool"], clock.share, rounds) for side in (SMALL, LARGE))
    extra = 4.0 * (LARGE**2 - SMALL**2) * UNITS * TENSORS
    return {
        "gather": Chore(small.forward / UNITS, _rate(extra, large.forward - small.forward), small.idle_forward / UNITS),
        "reduce": Chore(
            small.backward / UNITS, _rate(extra, large.backward - small.backward), small.idle_backward / UNITS
        ),
        "update": Chore(small.update / (UNITS * TENSORS), _rate(UPDATED * extra, large.update - small.update)),
        "local": Chore(_local(clock, grid["apart"])),
        "move": Chore(_move(clock)),
        "read": Chore(_read(clock)),
    }


def _local(clock: Clock, mesh: DeviceMesh) -> float:
    """Reading this rank's part of a cut parameter, and the way back of its gradient."""
    parts = [torch.randn(SMALL, SMALL, requires_grad=True) for _ in range(TENSORS)]
    whole = [nn.Parameter(DTensor.from_local(part.detach(), mesh, [Shard(0)], run_check=False)) for part in parts]

    def read(tensors: Sequence[Tensor]) -> None:
        total = torch.zeros(SMALL, SMALL)
        for tensor in tensors:
            total = total + (tensor.to_local() if isinstance(tensor, DTensor) else tensor)
        torch.autograd.grad(total, tensors, torch.ones(SMALL, SMALL))

    return max(0.0, clock.seconds(lambda: read(whole)) - clock.seconds(lambda: read(parts))) / TENSORS


def _move(clock: Clock) -> float:
    """A change of state and its dual, without messages and beyond the copy that each makes."""
    x, keep = torch.randn(SMALL, SMALL, requires_grad=True), ("keep", 0, 0)

    def moved(move: Callable[[Tensor], Tensor]) -> None:
        y = x
        for _ in range(TENSORS):
            y = move(y)
        torch.autograd.grad(y, x, torch.ones_like(y))

    own = clock.seconds(lambda: moved(lambda y: convert(y, keep, keep, ("", 1, 0))))
    return max(0.0, own - clock.seconds(lambda: moved(torch.neg))) / TENSORS


def _read(clock: Clock) -> float:
    """Reading one sequence of a batch and packing it."""
    batch = torch.randint(0, 256, (SEQUENCES, 64)).tolist()

    def read() -> None:
        docs = documents(batch, Limits(256, 256, None))
        digest(docs)
        pack(docs, bucket=8, device=torch.device("cpu"))

    return clock.seconds(read) / SEQUENCES


def _cost(side: int, mesh: DeviceMesh, share: float, rounds: int) -> _Times:
    """What sharding adds to units of this size, and what their optimizer takes; times of a core that is shared."""
    sharded, plain = (_timed(_units(side, on), side, rounds) for on in (mesh, None))
    return _Times(
        forward=share * max(0.0, sharded.forward - plain.forward),
        backward=share * max(0.0, sharded.backward - plain.backward),
        idle_forward=share * max(0.0, sharded.idle_forward - plain.forward),
        idle_backward=share * max(0.0, sharded.idle_backward - plain.backward),
        update=share * sharded.update,
    )


def _units(side: int, mesh: DeviceMesh | None) -> nn.Module:
    root = nn.Sequential(*(_Unit(side) for _ in range(UNITS)))
    if mesh is None:
        return root
    for module in (*root, root):
        compat.sum_gradients(fully_shard(module, mesh=mesh, reshard_after_forward=False))
    return root


def _timed(root: nn.Module, side: int, rounds: int) -> _Times:
    optimizer = torch.optim.AdamW(root.parameters(), lr=1e-3)
    x = torch.randn(4, side)

    def both(*, moving: bool) -> tuple[float, float]:
        if isinstance(root, FSDPModule):
            root.set_requires_gradient_sync(moving)
            root.set_is_last_backward(moving)
            root.set_reshard_after_backward(moving)
        begun = time.process_time()
        loss = root(x).sum()
        middle = time.process_time()
        loss.backward()
        return middle - begun, time.process_time() - middle

    found = []
    for _ in range(rounds + 1):
        idle = both(moving=False), both(moving=False)  # the first one gathers, and the second finds all there
        reducing = both(moving=True)
        gathering = both(moving=True)
        begun = time.process_time()
        clip_grad_norm_(root.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        found.append(_Times(gathering[0], reducing[1], *idle[1], time.process_time() - begun))
    return _Times(*(median(getattr(one, name) for one in found[1:]) for name in _Times.__slots__))


def _rate(moved: float, seconds: float) -> float:
    return moved / seconds if seconds > moved / FASTEST else FASTEST
