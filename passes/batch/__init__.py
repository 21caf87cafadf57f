"""Policies by name: how one batch is placed over time and ranks."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType

from fourfold.passes.batch.auto import Policy, auto
from fourfold.passes.batch.bytescale import bytescale
from fourfold.passes.batch.chunkflow import chunkflow
from fourfold.passes.batch.flexsp import flexsp
from fourfold.passes.batch.pack import pack
from fourfold.passes.batch.static_cp import homogeneous, static_cp
from fourfold.passes.batch.zeppelin import zeppelin

__all__ = ["POLICIES", "SINGLE", "Policy"]

SINGLE: Mapping[str, Policy] = MappingProxyType(
    {
        "pack": pack,
        "static_cp": static_cp,
        "homogeneous": homogeneous,
        "bytescale": bytescale,
        "zeppelin": zeppelin,
        "chunkflow": chunkflow,
        "flexsp": flexsp,
    }
)
"""Each follows one idea."""

POLICIES: Mapping[str, Policy] = MappingProxyType({**SINGLE, "auto": partial(auto, starts=tuple(SINGLE.values()))})
"""All, and the one that starts from them and is never slower."""
