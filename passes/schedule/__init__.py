"""Pipeline schedules: generators of compute orders by name, what is added to them, and how long they take."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fourfold.ir.schedule import Schedule
from fourfold.passes.schedule.gpipe import gpipe
from fourfold.passes.schedule.interleaved import interleaved
from fourfold.passes.schedule.one_f_one_b import one_f_one_b
from fourfold.passes.schedule.zero_bubble import zero_bubble

KINDS: Mapping[str, Callable[..., Schedule]] = {
    "gpipe": gpipe,
    "1f1b": one_f_one_b,
    "interleaved": interleaved,
    "zero_bubble": zero_bubble,
}
