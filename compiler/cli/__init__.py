"""The command line. Commands import torch and the planner inside functions: help and mistakes answer at once."""

from __future__ import annotations


def main() -> None:
    """Runs `fourfold` on the arguments of the process, and ends it with the exit code."""
    from fourfold.compiler.cli.app import run

    raise SystemExit(run())
