"""Fills a program's parameters: from the model's own initialisers, or from a plain module; each rank keeps its part."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, Shard

from fourfold.hardware.errors import ModelError
from fourfold.ir.graph import Graph

Lookup = Callable[[str], Tensor | None]


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
                _copy(target, place(name, whole))
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


def initialised(model: nn.Module, seed: int, device: torch.device) -> Lookup:
    """A source that runs the model's own initialisers: same seed, same weights, whatever the plan.

    A parameter's module is rebuilt alone on `device`, its `reset_parameters` (and the model's `_init_weights`) run
    under a seed made of `seed` and the module's name; parameters no initialiser sets keep the model's own values.
    """
    owners = dict(_owners(model))
    made: dict[str, dict[str, Tensor]] = {}

    def source(name: str) -> Tensor | None:
        if name not in owners:
            return None
        module_name, short = owners[name]
        if module_name not in made:
            made.clear()
            made[module_name] = _reset(model, module_name, seed, device)
        return made[module_name].get(short)

    return source


def copied(model: nn.Module) -> Lookup:
    """A source that reads a plain module's weights; None where they are on the meta device."""
    values = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}

    def source(name: str) -> Tensor | None:
        value = values.get(name)
        return None if value is None or value.is_meta else value.detach()

    return source


def require_all(unset: tuple[str, ...], what: str) -> None:
    """Raises one ModelError that lists what stayed unset."""
    if unset:
        raise ModelError(
            f"{what} leaves {len(unset)} tensors unset: {', '.join(unset[:8])}{' ...' if len(unset) > 8 else ''}; give their "
            "modules reset_parameters(), give the model _init_weights(module), or build the model outside torch.device('meta')"
        )


def _owners(model: nn.Module) -> Iterator[tuple[str, tuple[str, str]]]:
    """Each tensor's first name, with the module that owns it."""
    seen: set[int] = set()
    for module_name, module in model.named_modules():
        for short, value in (*module._parameters.items(), *module._buffers.items()):
            if value is not None and id(value) not in seen:
                seen.add(id(value))
                yield (f"{module_name}.{short}" if module_name else short), (module_name, short)


def _reset(model: nn.Module, name: str, seed: int, device: torch.device) -> dict[str, Tensor]:
    original = model.get_submodule(name)
    reset = getattr(original, "reset_parameters", None)
    hook = getattr(model, "_init_weights", None)
    if (reset is None or not original._parameters) and hook is None:
        return _own(original)
    twin = copy.copy(original)
    twin._parameters = {k: _empty(p, device) for k, p in original._parameters.items()}
    twin._buffers = {k: None if b is None else torch.full_like(b, 0, device=device) if b.is_meta else b for k, b in original._buffers.items()}
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
        torch.manual_seed(int.from_bytes(digest[:7], "little"))
        if reset is not None:
            twin.reset_parameters()
        if hook is not None:
            hook(twin)
    found = {k: p.detach() for k, p in twin._parameters.items() if p is not None and not torch.isnan(p).all()}
    kept = {k: v for k, v in _own(original).items() if k not in found}
    buffers = {k: b for k, b in twin._buffers.items() if b is not None and not original._buffers[k].is_meta}  # type: ignore[union-attr]
    return {**kept, **found, **buffers}


def _own(module: nn.Module) -> dict[str, Tensor]:
    """The tensors a module holds with data."""
    tensors = {**module._parameters, **module._buffers}
    return {k: v.detach() for k, v in tensors.items() if v is not None and not v.is_meta}


def _empty(parameter: nn.Parameter | None, device: torch.device) -> nn.Parameter | None:
    """A float32 stand-in full of NaN, so that what no initialiser writes is seen."""
    if parameter is None:
        return None
    return nn.Parameter(torch.full(parameter.shape, float("nan"), device=device), requires_grad=parameter.requires_grad)


def tensor_part(stored: dict[str, Shard | Replicate], rank: int, size: int) -> Callable[[str, Tensor], Tensor]:
    """Cuts a whole tensor to this rank's part along the tensor axis."""

    def place(name: str, whole: Tensor) -> Tensor:
        placement = stored.get(name)
        return whole.chunk(size, placement.dim)[rank] if isinstance(placement, Shard) else whole

    return place
