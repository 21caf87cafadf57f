"""Sequence methods by name: how the ranks of a group share one attention."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from fourfold.ir.sequence.gather_kv import GATHER_KV
from fourfold.ir.sequence.method import Method
from fourfold.ir.sequence.ring import RING
from fourfold.ir.sequence.rsa import RSA
from fourfold.ir.sequence.token_ring import TOKEN_RING
from fourfold.ir.sequence.ulysses import ULYSSES, USP
from fourfold.ir.sequence.whole import WHOLE

METHODS: Mapping[str, Method] = MappingProxyType(
    {method.name: method for method in (WHOLE, RING, GATHER_KV, ULYSSES, USP, TOKEN_RING, RSA)}
)
EXCHANGING = ("ulysses", "usp")
"""Methods by which ranks exchange heads."""
