"""Seconds of a step under a batch plan: all policies are priced here, whatever they place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from fourfold.ir.batch import BatchPlan
from fourfold.passes.batch.timing.bounding import bound
from fourfold.passes.batch.timing.clock import clocked, stepped
from fourfold.passes.batch.timing.terms import Terms


@dataclass(frozen=True)
class Timing:
    """One step: its seconds, those in which each rank computes, and what bounds it from below, once asked for."""

    seconds: float
    busy: tuple[float, ...]
    least: Callable[[], float] = field(repr=False, compare=False)

    @cached_property
    def bound(self) -> float:
        """Seconds that no placement of this batch goes below."""
        return self.least()

    @property
    def balance(self) -> float:
        """The mean rank's work over the fullest rank's."""
        return sum(self.busy) / len(self.busy) / max(self.busy)

    @property
    def gap(self) -> float:
        """How far the step is above its bound."""
        return self.seconds / self.bound - 1.0


def timed(batch: BatchPlan, terms: Terms, paces: Sequence[float] = ()) -> Timing:
    """Ranks that share a team wait for each other in its micro-step; under ZeRO 2 and 3 all wait for all.

    paces: what each rank's seconds are multiplied by, if they differ. What hosts or other ranks take over is not held
    to the room of ranks, and its bound is not.
    """
    steps = stepped(batch, terms, paces)
    busy = sum((step.busy for step in steps), np.zeros(batch.ranks))

    def least() -> float:
        return terms.once + bound(batch.lengths, terms, offloaded=max(batch.held.values()) > batch.capacity)

    return Timing(terms.once + clocked(steps, terms), tuple(busy.tolist()), least)
