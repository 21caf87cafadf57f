"""Policies by name: how one batch is placed over time and ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from fourfold.ir.batch import BatchPlan
from fourfold.passes.batch.auto import auto
from fourfold.passes.batch.bytescale import bytescale
from fourfold.passes.batch.pack import pack
from fourfold.passes.batch.static_cp import homogeneous, static_cp
from fourfold.passes.batch.terms import Terms
from fourfold.passes.batch.zeppelin import zeppelin

Policy = Callable[[Sequence[int], Terms], BatchPlan]

POLICIES: Mapping[str, Policy] = MappingProxyType(
    {
        "pack": pack,
        "static_cp": static_cp,
        "homogeneous": homogeneous,
        "bytescale": bytescale,
        "zeppelin": zeppelin,
        "auto": auto,
    }
)
