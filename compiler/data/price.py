"""Seconds of a step over given lengths, as a plan and a policy would run it: what a window weighs batches by."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

from fourfold.compiler.data.window import Price
from fourfold.compiler.online.choosing import named
from fourfold.hardware.errors import InfeasibleError
from fourfold.ir.plan import Plan
from fourfold.passes.batch import Policy
from fourfold.passes.batch.timing.planned import terms_of
from fourfold.passes.batch.timing.terms import Terms
from fourfold.passes.batch.timing.timing import timed


@dataclass(frozen=True, slots=True)
class Predicted:
    """Seconds by a policy's own placement; infinite where it has none."""

    terms: Terms
    policy: Policy

    def __call__(self, lengths: tuple[int, ...]) -> float:
        """Of a step."""
        try:
            return timed(self.policy(lengths, self.terms), self.terms).seconds
        except InfeasibleError:
            return math.inf


def predicted(plan: Plan, policy: str | Policy = "bytescale") -> Price:
    """The price of batches under a static plan. Raises UsageError for an unknown policy.

    Arithmetic alone: hosts that compute logarithms alike price alike, and others are told when their batches differ.
    """
    return cache(Predicted(terms_of(plan), named(policy)))
