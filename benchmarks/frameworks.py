"""What the frameworks of published runs did otherwise than Fourfold does: stated choices, read from their sources.

Each is a price of a plan with a few of its parts exchanged. No number here is fitted to a run: counts are counts of
kernels and of collectives in the framework's source of that month, seconds are those of the machine's profile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from math import prod

from as_megatron import kernel_by_kernel, megatron

from fourfold.costmodel.kernel import stream_time
from fourfold.ir.plan import SIZES
from fourfold.passes.price.price import Priced, seconds_of
from fourfold.passes.price.seconds import Seconds
from fourfold.passes.price.steps import CallCost
from fourfold.passes.price.work import work

REUSE = 1e9
"""Elements of other parameters used in between up to which a replayed layer's parameter is kept for its backward
(`stage3_max_reuse_distance`): beyond it is gathered a third time."""

PERSISTENT = 100_000
"""Parameters of fewer elements are never sharded (`stage3_param_persistence_threshold`)."""

GATHERED = 4
"""Passes over a gathered parameter besides the collective: zeroed, copied out of the collective's buffer (read and
written), read for its norm."""

REDUCED = 4
"""Passes over a gradient: divided (read and written), copied into the collective's buffer (read and written)."""


@dataclass(frozen=True)
class DeepSpeed(Priced):
    """DeepSpeed's ZeRO-3 of April 2021 (0.3.15, runtime/zero/partition_parameters.py and stage3.py).

    Each parameter is gathered, and its gradient scattered, by a collective of its own, before and after which the
    program waits for the whole device: nothing overlaps. torch.distributed of then took and gave a list of tensors,
    one a rank: a view and a copy each, which the host launches one by one. NCCL's only algorithm for both collectives
    was one ring through all ranks, so that most of its steps are those inside nodes. What its authors and users
    found of this later in the year: issues 1069, 1174, pull requests 1188 and 1453.
    """

    @property
    def blocking(self) -> bool:
        """`torch.cuda.synchronize` around every collective."""
        return True

    def _call(self, name: str, mode: str) -> CallCost:
        """The call with a collective for each parameter instead of one for all."""
        gather = reduce = 0.0
        later = 0
        for elements in reversed(self._parameters(name)):
            size = float(elements * SIZES[self.plan.precision.compute])
            gathers = 3 if mode == "full" and later >= REUSE else 2
            # The step's own price gathers twice.
            gather += gathers / 2 * (self._collective("all_gather", size) + self._pieces(size, GATHERED))
            size = float(elements * SIZES[self.plan.precision.reduce])
            reduce += self._collective("reduce_scatter", size) + self._pieces(size, REDUCED)
            later += 2 * elements
        return replace(super()._call(name, mode), gather=gather, reduce=reduce)

    def _parameters(self, name: str) -> tuple[int, ...]:
        """Elements of each parameter of a block that is sharded, in their order; the parts of a fused one are one."""
        graph = self.plan.graph
        call = next(call for call in graph.calls if call.block == name)
        sizes: dict[str, int] = {}
        for own, value in graph.blocks[name].parameters.items():
            fqn = call.fqn(own)
            whole = graph.parts[fqn].of if fqn in graph.parts else fqn
            sizes[whole] = sizes.get(whole, 0) + prod(value.shape)
        return tuple(elements for elements in sizes.values() if elements >= PERSISTENT)

    def _pieces(self, size: float, passes: int) -> float:
        """Seconds around one collective: its ring's steps inside nodes, a view and a copy a rank, passes over it."""
        ranks, device = self.pool.size, self.machine.device
        inside = self.pool.intra.latency_large * self.pool.intra.step if self.pool.intra else 0.0
        ring = (ranks - self.pool.nodes - (self.pool.per_node - 1)) * inside
        return ring + 2 * ranks * device.launch + stream_time(passes * size, device)


def deepspeed(plain: Priced) -> DeepSpeed:
    """A plan as DeepSpeed ran it: the model was Megatron-LM's."""
    return DeepSpeed(plain.plan, plain.machine, plain.laid, kernel_by_kernel(plain), pools=plain.pools)


@dataclass(frozen=True)
class OneByOne(Seconds):
    """Seconds of ops that nothing fuses: each is launched, reads its inputs and writes its output."""

    @property
    def fused(self) -> bool:
        """Never."""
        return False


def eager(plain: Priced) -> Priced:
    """A plan as torch runs it that compiles nothing."""
    known = seconds_of(plain.plan, plain.machine)
    seconds = OneByOne(*(getattr(known, field.name) for field in fields(Seconds)))
    done = {name: work(laid, seconds) for name, laid in plain.laid.blocks.items()}
    return Priced(plain.plan, plain.machine, plain.laid, done, pools=plain.pools)


def ours(plain: Priced) -> Priced:
    """A plan as we would run it."""
    return plain


FRAMEWORKS: Mapping[str, Callable[[Priced], Priced]] = {
    "": ours,
    "eager": eager,
    "megatron-2021": megatron,
    "deepspeed-2021": deepspeed,
}
"""By the word in the data."""

PINS: Mapping[str, Mapping[str, str]] = {"megatron-2021": {"*norm": "whole"}}
"""What the plan of a framework cannot choose: norms on cut tokens came to Megatron-LM in 2022 (arXiv 2205.05198)."""


def framed(priced: Priced, framework: str) -> Priced:
    """The same plan, priced as that framework ran it."""
    return FRAMEWORKS[framework](priced)
