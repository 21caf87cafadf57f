"""Policies side by side on one batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

from fourfold.hardware.errors import InfeasibleError, UsageError
from fourfold.ir.batch import BatchPlan
from fourfold.ir.batch_rules import complaints
from fourfold.passes.batch import POLICIES
from fourfold.passes.batch.timing.terms import Terms
from fourfold.passes.batch.timing.timing import Timing, timed

Watch = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Compared:
    """One policy's placement, its price and the seconds it took to find; or why there is none."""

    policy: str
    batch: BatchPlan | None
    timing: Timing | None
    solving: float
    refused: str = ""


def compared(lengths: Sequence[int], terms: Terms, names: Sequence[str], *, watch: Watch) -> tuple[Compared, ...]:
    """Each policy by name, the fastest first, then those that cannot; auto before what it found equally fast.

    Raises UsageError for an unknown name.
    """
    for name in names:
        if name not in POLICIES:
            raise UsageError(f"policy {name!r} is not known; give one of {', '.join(POLICIES)}")
    found = []
    for name in names:
        watch(name)
        found.append(_one(name, lengths, terms))
    return tuple(sorted(found, key=lambda one: (one.timing.seconds if one.timing else inf, one.policy != "auto")))


def _one(name: str, lengths: Sequence[int], terms: Terms) -> Compared:
    started = time.process_time()
    try:
        batch = POLICIES[name](lengths, terms)
    except InfeasibleError as error:
        return Compared(name, None, None, time.process_time() - started, str(error))
    spent = time.process_time() - started
    wrong = complaints(batch, terms.bounds)
    assert not wrong, f"{name} broke the batch plan: {'; '.join(wrong[:3])}"
    return Compared(name, batch, timed(batch, terms), spent)
