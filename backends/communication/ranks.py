"""This process among the others: the process group, the device, the mesh of the plan, and one error for all ranks."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import HashStore, PrefixStore  # type: ignore[attr-defined]
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.distributed_c10d import _set_pg_timeout
from torch.distributed.rendezvous import rendezvous

from fourfold.backends.communication.collectives import Axis
from fourfold.backends.communication.torch_comm import TorchComm
from fourfold.backends.communication.wire import Wire
from fourfold.hardware.errors import FourfoldError, RunError
from fourfold.ir.mesh import Mesh

TIMEOUT = 600.0
"""Seconds a collective waits for the slowest rank before the run fails."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """The plan's mesh as process groups: pp outside, (replicate, shard) over the pool, tp inside.

    `queues` are communicators of the whole pool for attention's messages, `wire` is this rank's line of stages.
    """

    device: torch.device
    rank: int
    mesh: DeviceMesh
    tensor: Axis
    queues: tuple[TorchComm, ...]
    wire: Wire

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
        replicate, shard = (self.mesh.get_local_rank(axis) for axis in ("replicate", "shard"))
        return replicate * self.mesh["shard"].size() + shard

    @property
    def stage_rank(self) -> int:
        """This rank's place in its line of stages."""
        return self.wire.members.index(self.rank)

    @property
    def pool(self) -> int:
        """Ranks of the pool."""
        return self.mesh["replicate"].size() * self.mesh["shard"].size()

    @property
    def world(self) -> int:
        """All ranks."""
        return self.mesh.size()


def join(
    mesh: Mesh, *, shard: bool, queues: int = 0, device: torch.device | None = None, timeout: float = TIMEOUT
) -> Ranks:
    """Joins the process group torchrun describes (or one of a single rank) and lays the mesh over it.

    queues: communicators that attention's messages may go by, each of the whole pool.

    A group that is already there is used as it is, with its own timeout. Raises RunError when the number of processes
    is not the plan's, with the line that starts the right one, and when this host has fewer GPUs than processes.
    """
    world = _world()
    if world != mesh.ranks:
        needed = "1 process" if mesh.ranks == 1 else f"{mesh.ranks} processes"
        raise RunError(
            f"the plan needs {needed} ({mesh}) and {world} {'is' if world == 1 else 'are'} running; "
            f"start it with: {launch_line(mesh.ranks)}"
        )
    device = _enter(device, timeout)
    replicate, sharded = (1, mesh.pool) if shard else (mesh.pool, 1)
    shape = (mesh.pp, replicate, sharded, mesh.tp)
    grid = _grid(device, _numbered(mesh).view(shape), timedelta(seconds=timeout))
    group = grid["tp"].get_group()
    rank = dist.get_rank()
    tensor = Axis(group.group_name, mesh.tp, mesh.place(rank, "tp"))
    made = tuple(_queue(mesh, rank, timedelta(seconds=timeout)) for _ in range(queues))
    return Ranks(device, rank, grid, tensor, made, _wire(mesh, grid, rank))


def _numbered(mesh: Mesh) -> torch.Tensor:
    """The rank at each place [pp, pool, tp]."""
    lines, pools, pair = (torch.tensor(mesh.group(axis)) for axis in ("pp", "pool", "tp"))
    return lines[:, None, None] + pools[:, None] + pair


def _grid(device: torch.device, ranks: torch.Tensor, timeout: timedelta) -> DeviceMesh:
    """The mesh, whose groups wait no longer than the whole one does: left alone, torch gives them its own default."""
    names = ("pp", "replicate", "shard", "tp")
    if device.type == "cuda":
        grid = DeviceMesh(device.type, ranks, mesh_dim_names=names)
        for name in names:
            _set_pg_timeout(timeout, grid[name].get_group())
        return grid
    # gloo's point-to-point keeps to the timeout its group was made with.
    lines = [ranks.movedim(dim, -1).reshape(-1, size).tolist() for dim, size in enumerate(ranks.shape)]
    return DeviceMesh.from_group([_own(each, timeout) for each in lines], "cpu", mesh=ranks, mesh_dim_names=names)


def _own(lines: list[list[int]], timeout: timedelta) -> dist.ProcessGroup:
    """The group of this rank's line; one of all ranks is there already."""
    everyone = dist.group.WORLD
    assert everyone is not None
    if len(lines) == 1:
        return everyone
    made, _ = dist.new_subgroups_by_enumeration(lines, timeout)  # type: ignore[no-untyped-call]
    assert isinstance(made, dist.ProcessGroup)
    return made


def _wire(mesh: Mesh, grid: DeviceMesh, rank: int) -> Wire:
    """The ranks of one place in every stage."""
    members = tuple(next(line for line in mesh.groups("pp") if rank in line))
    return Wire(members, grid["pp"].get_group() if mesh.pp > 1 else None)


def _queue(mesh: Mesh, rank: int, timeout: timedelta) -> TorchComm:
    """This rank's pool on a communicator of its own, made once at the start."""
    pools = mesh.groups("pool")
    # Even where the pool is all ranks: on a GPU the small talk of a step must not queue behind attention's messages.
    made, _ = dist.new_subgroups_by_enumeration(pools, timeout)  # type: ignore[no-untyped-call]
    assert made is not None
    return TorchComm(tuple(next(one for one in pools if rank in one)), made)


def launch_line(ranks: int) -> str:
    """The command that starts this program on `ranks` processes, over as many hosts as its GPUs ask for."""
    words = sys.argv if sys.argv and sys.argv[0] not in ("", "-c") else ["<script>"]
    script = " ".join(w if w == "<script>" else shlex.quote(w) for w in words)
    if ranks == 1:
        return f"python {script}"
    here = torch.cuda.device_count() if torch.cuda.is_available() else ranks
    if here >= ranks or ranks % here:
        return f"torchrun --nproc_per_node {ranks} {script}"
    return (
        f"torchrun --nnodes {ranks // here} --nproc_per_node {here} --rdzv_backend c10d "
        f"--rdzv_endpoint <first host>:29500 {script}  (the same on every host)"
    )


@contextmanager
def together() -> Iterator[None]:
    """Runs a body without collectives; when it fails on some rank, every rank raises, so that none waits for another.

    A rank that failed raises its own error if it is named, else RunError; the others raise the first failing rank's.
    """
    mine: FourfoldError | None = None
    try:
        yield
    except FourfoldError as error:
        mine = error
    except Exception as error:
        mine = RunError(f"{type(error).__name__}: {error}")
        mine.__cause__ = error
    told = [None if e is None else (type(e), str(e)) for e in gathered(mine)]
    if mine is not None:
        raise mine
    for rank, found in enumerate(told):
        if found is not None:
            kind, text = found
            raise kind(f"rank {rank}: {text}")


def gathered(value: Any) -> list[Any]:
    """What every rank passed, in rank order."""
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def told(value: Any) -> Any:
    """What rank 0 passed, on every rank."""
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def from_first(make: Callable[[], str], *, device: torch.device | None = None, timeout: float = TIMEOUT) -> str:
    """What `make` returns on rank 0, on every rank: solvers may differ between hosts, a plan must not.

    Joins the process group torchrun describes if need be. What `make` raises is raised on every rank.
    """
    if _world() == 1:
        return make()
    _enter(device, timeout)
    text = ""
    with together():
        text = make() if dist.get_rank() == 0 else ""
    return str(told(text))


def same(values: Mapping[str, str], what: str) -> None:
    """Raises RunError on every rank, naming the first entry that some rank holds otherwise than the first that has it.

    A stage of a pipeline holds but some entries.
    """
    known: dict[str, tuple[int, str]] = {}
    for rank, held in enumerate(gathered(dict(values))):
        for name, value in held.items():
            first, wanted = known.setdefault(name, (rank, value))
            if value != wanted:
                raise RunError(f"{what}: {name} differs between rank {first} and rank {rank}")


def _world() -> int:
    """Processes that run, or that torchrun says will."""
    return dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))


def _enter(device: torch.device | None, timeout: float) -> torch.device:
    """Joins the process group, unless this process is in one, and says on what device."""
    device = device or _device()
    if not dist.is_initialized():
        _start(device, timedelta(seconds=timeout))
    return device


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    index = int(os.environ.get("LOCAL_RANK", "0"))
    count = torch.cuda.device_count()
    if index >= count:
        raise RunError(
            f"process {index} of this host has no GPU: {count} are here and each process needs its own; "
            f"start at most {count} processes per host (torchrun --nproc_per_node {count})"
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def _start(device: torch.device, timeout: timedelta) -> None:
    try:
        store, rank, world = _store(timeout)
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=store,
            rank=rank,
            world_size=world,
            timeout=timeout,
            device_id=device if device.type == "cuda" else None,
        )
    except (dist.DistError, ValueError) as error:
        raise RunError(f"the processes could not find each other: {error}") from error


def _store(timeout: timedelta) -> tuple[Any, int, int]:
    """Where processes find each other; torch's own way (None, -1, -1) unless alone or started again by torchrun.

    torchrun keeps one store over its restarts: addresses of processes that are gone would still be found in it.
    """
    if "RANK" not in os.environ:
        return HashStore(), 0, 1
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if restarts == "0":
        return None, -1, -1
    store, rank, world = next(rendezvous("env://", timeout=timeout))
    return PrefixStore(f"restart-{restarts}", store), rank, world
