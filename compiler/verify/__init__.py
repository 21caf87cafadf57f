"""Proves a plan: its program on gloo processes of this machine against the plain module, to the last gradient."""

from __future__ import annotations

from fourfold.compiler.verify.check import verify
from fourfold.compiler.verify.report import Check, Report

__all__ = ["Check", "Report", "verify"]
