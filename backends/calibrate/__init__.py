"""Measures the machine it runs on and says it in hardware profiles."""

from __future__ import annotations

from fourfold.backends.calibrate.detect import Detected, detect

__all__ = ["Detected", "detect"]
