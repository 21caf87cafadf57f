"""Batches placed while training: ahead of time, in the background, on one rank, and told to all."""

from __future__ import annotations

from fourfold.compiler.online.choosing import Online
from fourfold.compiler.online.placer import Placer

__all__ = ["Online", "Placer"]
