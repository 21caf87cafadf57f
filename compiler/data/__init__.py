"""Data on disk that ranks read by piece, and the order in which sequences make batches."""

from __future__ import annotations

from fourfold.compiler.data.tokens import TokenFile
from fourfold.compiler.data.window import Window

__all__ = ["TokenFile", "Window"]
