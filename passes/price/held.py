"""How many parameter elements one rank holds, gathers and trains; a parameter that several calls read counts once."""

from __future__ import annotations

from fourfold.costmodel.state import Held, shard_size
from fourfold.ir.plan import Plan
from fourfold.passes.price.laid import LaidGraph


def held(plan: Plan, laid: LaidGraph, calls: tuple[int, ...]) -> Held:
    """Parameter elements of one rank by unit, of these calls.

    The root's unit, gathered throughout, holds what several of them read.
    """
    shard = shard_size(zero=plan.zero, pool=plan.mesh.pool)
    blocks = [laid.blocks[name] for name in dict.fromkeys(plan.graph.calls[i].block for i in calls)]
    trained, frozen = ([row for row in laid.rows(calls) if row.trained is kind] for kind in (True, False))
    return Held(
        trainable=sum(row.elements for row in trained),
        trainable_shard=sum(row.kept(shard) for row in trained),
        block=max(block.held for block in blocks),
        block_trainable=max(block.trained for block in blocks),
        root=sum(row.elements for row in laid.rows(calls) if row.shared),
        root_trainable=sum(row.elements for row in trained if row.shared),
        frozen=sum(row.elements for row in frozen),
        frozen_shard=sum(row.kept(shard) for row in frozen),
    )
