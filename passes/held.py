"""How many parameter elements one rank holds, gathers and trains; a parameter that several calls read counts once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

from fourfold.costmodel.memory import shard_elements
from fourfold.costmodel.state import Held, shard_size
from fourfold.ir.graph import Graph
from fourfold.ir.plan import Plan
from fourfold.passes.work import Laid


@dataclass(frozen=True, slots=True)
class _Row:
    """One parameter of one block on one rank, and how many of it there are."""

    shape: tuple[int, ...]
    trained: bool
    times: int
    shared: bool

    @property
    def elements(self) -> int:
        return self.times * prod(self.shape)

    def kept(self, shard: int) -> int:
        """Elements that one of `shard` ranks stores."""
        return self.times * shard_elements(self.shape, shard)


def held(plan: Plan, laid: Mapping[str, Laid]) -> Held:
    """Parameter elements of one rank by unit. The root's unit, gathered throughout, holds what several calls read."""
    rows = tuple(_rows(plan.graph, laid))
    shard = shard_size(zero=plan.zero, pool=plan.mesh.pool)
    trained, frozen = ([row for row in rows if row.trained is kind] for kind in (True, False))
    return Held(
        trainable=sum(row.elements for row in trained),
        trainable_shard=sum(row.kept(shard) for row in trained),
        block=max(block.held for block in laid.values()),
        block_trainable=max(block.trained for block in laid.values()),
        root=sum(row.elements for row in rows if row.shared),
        root_trainable=sum(row.elements for row in trained if row.shared),
        frozen=sum(row.elements for row in frozen),
        frozen_shard=sum(row.kept(shard) for row in frozen),
    )


def _rows(graph: Graph, laid: Mapping[str, Laid]) -> Iterator[_Row]:
    readers: dict[str, list[tuple[str, str]]] = {}
    for call in graph.calls:
        for name in graph.blocks[call.block].parameters:
            readers.setdefault(call.fqn(name), []).append((call.block, name))
    shared = {key for keys in readers.values() if len(keys) > 1 for key in keys}
    first = {keys[0] for keys in readers.values()}
    for name, block in laid.items():
        for parameter, (shape, trained) in zip(block.block.parameters, block.shapes, strict=True):
            key = (name, parameter)
            times = graph.counts[name] if key in first and key not in shared else int(key in first)
            yield _Row(shape, trained, times, key in shared)
