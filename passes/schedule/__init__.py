"""Pipeline schedules: generators of compute orders by name, what is added to them, and how long they take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, partial

from fourfold.ir.plan import SPLIT
from fourfold.ir.schedule import Schedule
from fourfold.passes.schedule.gpipe import gpipe
from fourfold.passes.schedule.interleaved import interleaved
from fourfold.passes.schedule.one_f_one_b import one_f_one_b
from fourfold.passes.schedule.sends import with_sends
from fourfold.passes.schedule.zero_bubble import zero_bubble

KINDS: Mapping[str, Callable[..., Schedule]] = {
    "gpipe": gpipe,
    "1f1b": one_f_one_b,
    "interleaved-2": partial(interleaved, virtual=2),
    "interleaved-3": partial(interleaved, virtual=3),
    "interleaved-4": partial(interleaved, virtual=4),
    "zero_bubble": zero_bubble,
}
STANDS_IN: Mapping[str, str] = {"solved": "zero_bubble"}
"""What a step runs whose number of micro-steps is not the one that was solved."""


@lru_cache(maxsize=256)
def scheduled(kind: str, ranks: int, micro_steps: int, *, order: str = "") -> Schedule:
    """A schedule by name, with its messages; `order`, a text of computes, where it is one of so many micro-steps.

    A receive posted early hides its transfer; but on a GPU it is a kernel that spins until the other end comes, on
    units that the compute beside it lacks. Where backwards are whole that is long and the transfer short, a thousandth
    of a stage: receives stand as late as can be. Where they are split, W is what stands between, and short.
    """
    ahead = int(kind in SPLIT)
    given = Schedule.parse(order) if order else None
    if given is not None and given.micro_steps == micro_steps:
        return with_sends(given, ahead=ahead)
    return with_sends(KINDS[STANDS_IN.get(kind, kind)](ranks, micro_steps), ahead=ahead)
