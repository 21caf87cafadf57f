"""A pruned copy of the user's module tree: it owns the parameters under their names, and computes nothing itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from fourfold.ir.graph import Call, Graph
from fourfold.ir.rule import State


class Container(nn.Module):
    """A module of the tree: calling it runs what it is given, so that hooks of sharded parameters fire around it."""

    def forward(self, run: Callable[..., Any], *tensors: Tensor) -> Any:
        """Returns `run(*tensors)`; the tensors are arguments so that hooks see their gradients arrive.

        No output is a view: autograd would move the hooks of sharded parameters off a view that is written in place.
        """
        found = run(*tensors)
        return tuple(_owned(x) for x in found) if isinstance(found, tuple) else _owned(found)


@dataclass(frozen=True, slots=True)
class Slot:
    """One parameter's place: the container that holds it, its name there, and if its gradient is partial over tp."""

    container: Container
    name: str
    partial: bool

    def local(self) -> Tensor:
        """This rank's part, as the regions read it."""
        parameter: Tensor = getattr(self.container, self.name)
        if not isinstance(parameter, DTensor):
            return parameter
        placements = [Partial()] if self.partial else None
        local: Tensor = parameter.to_local(grad_placements=placements)
        return local


def build(
    graph: Graph, stored: dict[str, State], dtypes: tuple[torch.dtype, torch.dtype], tp: DeviceMesh | None
) -> Container:
    """The tree on the meta device: each parameter this rank's part along tp, in `dtypes[0]` if floating.

    `stored` maps a parameter's full name to its state on tp; buffers come in their own dtype.
    """
    root = Container()
    for name, value in graph.parameters():
        state = stored[name]
        ranks = tp.size() if tp is not None and state.kind == "S" else 1
        shape = tuple(s // ranks if i == state.dim else s for i, s in enumerate(value.shape))
        kind: torch.dtype = getattr(torch, value.dtype)
        data = torch.empty(shape, dtype=dtypes[0] if kind.is_floating_point else kind, device="meta")
        if tp is not None:
            placement = Shard(state.dim) if state.kind == "S" else Replicate()
            data = DTensor.from_local(
                data, tp, [placement], run_check=False, shape=torch.Size(value.shape), stride=_strides(value.shape)
            )
        place(root, name).register_parameter(name.rsplit(".", 1)[-1], nn.Parameter(data, requires_grad=value.grad))
    for call in graph.calls:
        for name, value in graph.blocks[call.block].buffers.items():
            full = call.fqn(name)
            empty = torch.empty(value.shape, dtype=getattr(torch, value.dtype), device="meta")
            place(root, full).register_buffer(full.rsplit(".", 1)[-1], empty)
    return root


def place(root: Container, name: str) -> Container:
    """The container that owns the parameter `name`, made on the way if missing."""
    at = root
    for word in name.split(".")[:-1]:
        if word not in at._modules:
            at.add_module(word, Container())
        child = at._modules[word]
        assert isinstance(child, Container)
        at = child
    return at


def slots(root: Container, graph: Graph, call: Call, partial: frozenset[str]) -> dict[str, Slot]:
    """Where a call finds its parameters and buffers, by the block's own names for them."""
    block = graph.blocks[call.block]
    found = {}
    for name in (*block.parameters, *block.buffers):
        full = call.fqn(name)
        found[name] = Slot(place(root, full), full.rsplit(".", 1)[-1], name in partial)
    return found


def units(root: Container, graph: Graph) -> Iterator[tuple[int, tuple[Container, ...]]]:
    """For each call by its place in `graph`, the containers whose parameters it alone reads: what is gathered together.

    A call under a module's name owns that module; glue owns the modules of its parameters. What two calls share, or
    what lies on the root itself, is left to the root's own unit.
    """
    readers: dict[str, set[int]] = {}
    for i, call in enumerate(graph.calls):
        for name in graph.blocks[call.block].parameters:
            readers.setdefault(call.fqn(name), set()).add(i)
    shared = {place(root, name) for name, calls in readers.items() if len(calls) > 1}
    for i, call in enumerate(graph.calls):
        names = [name for name, calls in readers.items() if calls == {i}]
        if not names:
            continue
        if call.prefix and len(names) == len(graph.blocks[call.block].parameters):
            yield i, (place(root, f"{call.prefix}.x"),)
            continue
        owners = dict.fromkeys(place(root, name) for name in names)
        mine = tuple(c for c in owners if c is not root and c not in shared)
        if mine:
            yield i, mine


def _owned(x: Tensor) -> Tensor:
    """`x` without a base: the same memory, which nothing else reads."""
    return torch.ops.aten._unsafe_view(x, x.shape) if x._is_view() else x


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    found, step = [], 1
    for size in reversed(shape):
        found.append(step)
        step *= size
    return tuple(reversed(found))


def nested(containers: tuple[Container, ...], run: Callable[..., Any]) -> Callable[..., Any]:
    """`run` inside every container of a unit, so that its parameters are gathered before and sharded after."""
    for container in reversed(containers):
        run = _inside(container, run)
    return run


def _inside(container: Container, run: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *tensors: container(run, *tensors)
