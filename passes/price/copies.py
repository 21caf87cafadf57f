"""Seconds of the copies around what a pool gathers and reduces: bytes that FSDP2 moves inside one device.

Read from torch's own fully_shard (2.13, the same in 2.11). A gather casts the shard to the compute dtype, copies it
into its buffer, and what came out of that into the parameters. A reduction first copies the gradients into its buffer,
in the dtype that is reduced. A gradient that is not reduced yet is added to a sum in that dtype. One rank alone casts
and copies all the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from fourfold.costmodel.kernel import stream_time
from fourfold.costmodel.state import shard_size
from fourfold.hardware.machine import Device
from fourfold.ir.plan import SIZES, Plan
from fourfold.passes.price.laid import Laid


@dataclass(frozen=True, slots=True)
class Copies:
    """Seconds of one call's copies each time it is gathered (`fill`), reduced (`drain`) or kept back instead (`add`).

    `zero` and `several` (micro-steps) say when that is.
    """

    fill: float = 0.0
    drain: float = 0.0
    add: float = 0.0
    zero: int = 0
    several: bool = False

    @property
    def each(self) -> float:
        """What every micro-step copies at least."""
        if self.zero == 3:
            return self.fill + self.drain
        if self.zero == 2:
            return self.drain
        return self.add if self.several else self.fill + self.drain

    @property
    def once(self) -> float:
        """What a stage's first forward and last backward copy beyond the others."""
        return self.fill + self.drain - self.add if self.zero < 2 else 0.0

    def of_step(self, micro_steps: int, *, again: bool) -> float:
        """All of a step; `again` if backward gathers anew what forward gathered, where that is sharded between them."""
        gathers = micro_steps * (1 + again) if self.zero == 3 else 1
        reduces = micro_steps if self.zero >= 2 else 1
        return gathers * self.fill + reduces * self.drain + (micro_steps - reduces) * self.add


NOTHING = Copies()


def copies_of(laid: Laid, plan: Plan, device: Device) -> Copies:
    """The copies of one call of a block; none where the device's chores know them."""
    if "gather" in device.chores or "reduce" in device.chores:
        return NOTHING
    precision, zero, several = plan.precision, plan.zero, plan.micro_steps > 1
    master, compute, reduce = (SIZES[name] for name in (precision.parameter, precision.compute, precision.reduce))
    shard = shard_size(zero=zero, pool=plan.mesh.pool)
    cast = master + compute if master != compute else 0
    into = 2.0 * compute if shard > 1 else 0.0
    filled = laid.held * ((cast + into) / shard + 2.0 * compute)
    added = laid.trained * (compute + 2.0 * reduce)
    drained = laid.trained * (compute + reduce) + (laid.trained * 2.0 * reduce if shard == 1 else 0.0)
    if several:
        # What was kept back is added before it is reduced, or reduced shards are added up.
        drained += added if zero < 2 else laid.trained / shard * (reduce + 2.0 * master)
    fill, drain, add = (stream_time(moved, device) for moved in (filled, drained, added))
    return Copies(fill, drain, add if zero < 2 and several else 0.0, zero, several)
