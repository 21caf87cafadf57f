"""This process among the others: the process group, the device, the mesh of the plan."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from fourfold.backends.collectives import Axis
from fourfold.hardware.errors import RunError
from fourfold.ir.mesh import Mesh


@dataclass(frozen=True, slots=True)
class Ranks:
    """The plan's mesh as process groups: (replicate, shard) over the pool, tp inside."""

    device: torch.device
    rank: int
    mesh: DeviceMesh
    tensor: Axis

    @property
    def tp(self) -> DeviceMesh | None:
        """The tensor axis, None when it has one rank."""
        return self.mesh["tp"] if self.tensor.size > 1 else None

    @property
    def data(self) -> DeviceMesh:
        """The pool: sharded over "shard", repeated over "replicate"."""
        return self.mesh["replicate", "shard"] if self.mesh["replicate"].size() > 1 else self.mesh["shard"]

    @property
    def pool_rank(self) -> int:
        """This rank's place in the pool."""
        return self.rank // self.tensor.size

    @property
    def pool(self) -> int:
        """Ranks of the pool."""
        return self.mesh.size() // self.tensor.size


def join(mesh: Mesh, *, shard: bool, device: torch.device | None = None) -> Ranks:
    """Joins the process group torchrun describes (or one of a single rank) and lays the mesh over it.

    Raises RunError when the number of processes is not the plan's, with the line that starts the right one.
    """
    device = device or _device()
    world = dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))
    if world != mesh.ranks:
        raise RunError(
            f"the plan needs {mesh.ranks} processes ({mesh}) and {world} are running; start it with: "
            f"torchrun --nproc_per_node {mesh.ranks} <script>"
        )
    if not dist.is_initialized():
        _start(device)
    replicate, sharded = (1, mesh.pool) if shard else (mesh.pool, 1)
    grid = init_device_mesh(device.type, (replicate, sharded, mesh.tp), mesh_dim_names=("replicate", "shard", "tp"))
    group = grid["tp"].get_group()
    rank = dist.get_rank()
    return Ranks(device, rank, grid, Axis(group.group_name, mesh.tp, rank % mesh.tp))


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    index = int(os.environ.get("LOCAL_RANK", "0"))
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def _start(device: torch.device) -> None:
    if "RANK" not in os.environ:
        store = dist.HashStore()
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=store, rank=0, world_size=1)
        return
    if device.type == "cuda":
        dist.init_process_group("nccl", device_id=device)
    else:
        dist.init_process_group("gloo")
