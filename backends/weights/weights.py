"""Whole tensors into a program's parameters, each rank keeping its part, and out of them again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from fourfold.backends.communication.wire import Wire, along
from fourfold.hardware.errors import ModelError
from fourfold.ir.graph import Graph

Lookup = Callable[[str], Tensor | None]


@dataclass(frozen=True, slots=True)
class Home:
    """Where one of the program's tensors lies: the first place in the line of stages; its whole shape, its dtype."""

    place: int
    shape: tuple[int, ...]
    dtype: torch.dtype


def fill(root: nn.Module, graph: Graph, source: Lookup, place: Callable[[str, Tensor], Tensor]) -> tuple[str, ...]:
    """Copies `source(name)` into every parameter and buffer; returns the names that have none.

    `source` is asked for whole tensors under the model's own names (fused weights whole); `place` cuts one along tp.
    """
    unset = []
    with torch.no_grad():
        for name, target in (*root.named_parameters(), *root.named_buffers()):
            whole = _part_of(name, graph, source)
            if whole is None:
                unset.append(name)
            else:
                _copy(target, place(name, whole.reshape(1) if target.dim() > whole.dim() else whole))
    return tuple(unset)


def _part_of(name: str, graph: Graph, source: Lookup) -> Tensor | None:
    part = graph.parts.get(name)
    if part is None:
        return source(name)
    whole = source(part.of)
    return None if whole is None else whole.narrow(part.dim, part.start, part.stop - part.start)


def _copy(target: Tensor, mine: Tensor) -> None:
    """`mine` is this rank's part along tp; the sharded pool keeps one chunk of its rows."""
    if not isinstance(target, DTensor):
        target.copy_(mine)
        return
    local = target.to_local()
    mesh = target.device_mesh
    names = mesh.mesh_dim_names or ()
    if "shard" in names and mesh["shard"].size() > 1:
        chunks = mine.chunk(mesh["shard"].size(), 0)
        at = mesh["shard"].get_local_rank()
        if at >= len(chunks):
            return
        mine = chunks[at]
    local.copy_(mine)


def held(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a plain module that hold data, under all their names."""
    return {name: value.detach() for name, value in _tensors(model) if not value.is_meta}


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def require_all(unset: tuple[str, ...], what: str) -> None:
    """Raises one ModelError that lists what stayed unset."""
    if unset:
        raise ModelError(
            f"{what} leaves {len(unset)} {'tensor' if len(unset) == 1 else 'tensors'} unset: {', '.join(unset[:8])}"
            f"{' ...' if len(unset) > 8 else ''}; give their modules reset_parameters(), give the model "
            "_init_weights(module), or build the model outside torch.device('meta')"
        )


def checksums(values: Mapping[str, Tensor]) -> dict[str, str]:
    """A short text per tensor that tells whether two ranks hold the same values."""
    return {name: float(value.sum(dtype=torch.float64)).hex() for name, value in values.items()}


def tensor_part(stored: dict[str, Shard | Replicate], rank: int, size: int) -> Callable[[str, Tensor], Tensor]:
    """Cuts a whole tensor to this rank's part along the tensor axis."""

    def place(name: str, whole: Tensor) -> Tensor:
        placement = stored.get(name)
        return whole.chunk(size, placement.dim)[rank] if isinstance(placement, Shard) else whole

    return place


def homes(root: nn.Module, wire: Wire) -> dict[str, Home]:
    """All tensors of the program by name, in the order of its stages, of which a rank holds but some. A collective."""
    own = {n: (tuple(t.shape), t.dtype) for n, t in (*root.named_parameters(), *root.named_buffers())}
    found: dict[str, Home] = {}
    for place, tensors in enumerate(along(wire, own)):
        for name, (shape, dtype) in tensors.items():
            found.setdefault(name, Home(place, shape, dtype))
    return found


def carried(mine: Tensor | None, home: Home, wire: Wire, *, everywhere: bool) -> Tensor | None:
    """A whole tensor on rank 0, or on all ranks: `mine` on the ranks of its stage. Elsewhere None. A collective."""
    rank, source = dist.get_rank(), wire.members[home.place]
    if everywhere and len(wire.members) > 1:
        mine = _empty(home) if mine is None else mine.contiguous()
        dist.broadcast(mine, source, group=wire.group)
    elif wire.members[0] == 0 and home.place > 0 and not everywhere:
        if rank == 0:
            mine = _empty(home)
            dist.recv(mine, source, group=wire.group)
        elif mine is not None:
            dist.send(mine.contiguous(), 0, group=wire.group)
    return mine if everywhere or rank == 0 else None


def _empty(home: Home) -> Tensor:
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    return torch.empty(home.shape, dtype=home.dtype, device=device)


def plain(
    root: nn.Module,
    graph: Graph,
    model: nn.Module,
    gather: Callable[[str, Tensor], Tensor],
    *,
    wire: Wire,
    everywhere: bool,
) -> dict[str, Tensor]:
    """The model's state_dict from a program's tensors, on the CPU; empty beyond rank 0 unless `everywhere`.

    `gather(name, part)` returns the whole of a tensor and is called on all ranks of its stage, in the same order.
    """
    held = dict((*root.named_parameters(), *root.named_buffers()))
    found: dict[str, Tensor] = {}
    place = wire.members.index(dist.get_rank())
    for name, home in homes(root, wire).items():
        mine = gather(name, held[name]) if home.place == place else None
        value = carried(mine, home, wire, everywhere=everywhere)
        if value is not None:
            found[name] = value.cpu()
    if not everywhere and dist.get_rank() != 0:
        return {}
    own = dict(_tensors(model))
    by_tensor = {id(own[name]): value.reshape(own[name].shape) for name, value in _unsplit(found, graph, own).items()}
    wanted = model.state_dict(keep_vars=True)
    values = {name: by_tensor.get(id(t), None if t.is_meta else t.detach().cpu()) for name, t in wanted.items()}
    return {name: value for name, value in values.items() if value is not None}


def _unsplit(found: Mapping[str, Tensor], graph: Graph, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`found` with the parts of fused weights in their places; what no part covers is never read, and zero."""
    joined: dict[str, Tensor] = {}
    for name, value in found.items():
        part = graph.parts.get(name)
        if part is None:
            joined[name] = value
            continue
        fused = joined.setdefault(part.of, value.new_zeros(own[part.of].shape))
        fused.narrow(part.dim, part.start, part.stop - part.start).copy_(value)
    return joined


def whole(target: Tensor, cut: Shard | Replicate | None, tp: DeviceMesh | None) -> Tensor:
    """The whole of a parameter, on every rank: `target` is its rank's part and `cut` how it lies along tp.

    A collective. DTensor's own full_tensor() says the same, with a warning for each parameter cut twice along a dim.
    """
    if not isinstance(target, DTensor):
        return target.detach()
    mine = _pooled(target, tp.size() if tp is not None and isinstance(cut, Shard) and cut.dim == 0 else 1)
    if tp is None or not isinstance(cut, Shard):
        return mine
    return torch.cat(_all_gathered(mine, tp), cut.dim)


def _pooled(target: DTensor, cuts: int) -> Tensor:
    """This rank's part along tp, its rows joined over the pool; `cuts` is how often tp cuts the rows."""
    local: Tensor = target.to_local().detach()
    mesh = target.device_mesh
    if "shard" not in (mesh.mesh_dim_names or ()) or mesh["shard"].size() == 1:
        return local
    rows = target.shape[0] // cuts
    padded = local.new_zeros(-(-rows // mesh["shard"].size()), *local.shape[1:])
    padded[: local.shape[0]] = local
    return torch.cat(_all_gathered(padded, mesh["shard"]))[:rows]


def _all_gathered(mine: Tensor, mesh: DeviceMesh) -> list[Tensor]:
    parts = [torch.empty_like(mine, memory_format=torch.contiguous_format) for _ in range(mesh.size())]
    dist.all_gather(parts, mine.contiguous(), group=mesh.get_group())
    return parts
