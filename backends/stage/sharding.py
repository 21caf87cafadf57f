"""The parameters of one rank, sharded over the pool: built on the meta device, wrapped unit by unit, not yet filled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from fourfold.backends import compat
from fourfold.backends.stage import skeleton
from fourfold.backends.stage.engine import Engine


class Sharding:
    """A skeleton of this rank's stages, each unit wrapped by FSDP2, and the ZeRO stage in terms of it."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.zero = engine, engine.plan.zero
        precision = engine.plan.precision
        names = (precision.parameter, precision.compute, precision.reduce)
        parameter, compute, reduce = (getattr(torch, name) for name in names)
        root = skeleton.build(engine.own, engine.stored, (parameter, compute), engine.ranks.tp)
        policy = MixedPrecisionPolicy(
            param_dtype=compute if compute != parameter else None,
            reduce_dtype=reduce if reduce != compute else None,
            cast_forward_inputs=False,
        )
        keep: dict[str, Any] = {"mesh": engine.ranks.data, "mp_policy": policy}
        engine.place(root)
        # The head and the block before it are what the backward needs first: gathered again, nothing would hide it.
        anew = dict.fromkeys((*engine.units,)[:-2], self.zero == 3)
        for index, containers in engine.units.items():
            unit: Any = list(containers) if len(containers) > 1 else containers[0]
            fully_shard(unit, reshard_after_forward=anew.get(index, False), **keep)
        fully_shard(root, reshard_after_forward=False, **keep)
        for module in root.modules():
            if isinstance(module, FSDPModule):
                compat.sum_gradients(module)
        self.root: Any = root.to_empty(device=engine.ranks.device)

    def gather(self) -> None:
        """Every parameter whole, before the first forward: ranks that then differ in what they run do not wait."""
        for module in self.root.modules():
            if isinstance(module, FSDPModule):
                module.unshard(async_op=True)

    def about_to(self, stage: int, *, last: bool, final: bool) -> None:
        """Before a backward of `stage`: its last one in a step reduces gradients, where not each does (ZeRO 2, 3).

        final: it is the last backward of this rank; then the root's own parameters are reduced, too.
        """
        each = self.zero >= 2
        for unit in self._units(self.engine.stages[stage].calls):
            unit.set_requires_gradient_sync(last or each, recurse=False)
            if self.zero < 3:
                unit.set_reshard_after_backward(last, recurse=False)
        self.root.set_requires_gradient_sync(final or each, recurse=False)
        self.root.set_is_last_backward(final)
        if self.zero < 3:
            self.root.set_reshard_after_backward(final, recurse=False)

    def reshard(self) -> None:
        """Shards every parameter: only a backward does below ZeRO 3, and after a forward alone the next would read
        the weights of this one."""
        for module in self.root.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def _units(self, calls: Sequence[int]) -> Iterator[FSDPModule]:
        for index in calls:
            for container in self.engine.units.get(index, ()):
                assert isinstance(container, FSDPModule)
                yield container
