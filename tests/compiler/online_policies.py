"""Policies to place batches by in tests of online planning; background processes import this file by its name."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from fourfold.hardware import load
from fourfold.hardware.errors import InfeasibleError
from fourfold.ir.batch import BatchPlan
from fourfold.ir.batch_rules import Bounds
from fourfold.passes.batch.bytescale import bytescale
from fourfold.passes.batch.timing.terms import Layer, Terms
from fourfold.passes.sequence.tables import Heads


@cache
def terms(ranks: int = 2, capacity: int = 1024, zero: int = 1) -> Terms:
    """A small model."""
    layer = Layer(Heads(8, 2, 64, "bfloat16", causal=True), 4, 1.0)
    bounds = Bounds(ranks, capacity, zero, 8)
    return Terms(load("dgx-h200"), bounds, 1, 8, 1e-3, 1e-6, 1e-2, (layer,), "float32")


def released(lengths: Sequence[int], terms: Terms, *, path: Path) -> BatchPlan:
    """`bytescale`, once a file is there; it leaves a line a batch in `<path>.log`."""
    with path.with_suffix(".log").open("a") as file:
        file.write(f"{os.getpid()}\n")
    while not path.exists():
        time.sleep(0.005)
    return replace(bytescale(lengths, terms), policy="released")


def dying(lengths: Sequence[int], terms: Terms) -> BatchPlan:
    """A process killed, as by a host out of memory."""
    os._exit(7)


def failing(lengths: Sequence[int], terms: Terms) -> BatchPlan:
    """A mistake in a policy."""
    raise ValueError("one too many")


def dying_for_some(lengths: Sequence[int], terms: Terms, *, path: Path) -> BatchPlan:
    """Dies in every process but the one whose number is in the file."""
    if path.read_text() != str(os.getpid()):
        os._exit(7)
    return replace(bytescale(lengths, terms), policy="here")


def refusing(lengths: Sequence[int], terms: Terms) -> BatchPlan:
    """Nothing is good enough."""
    raise InfeasibleError("no placement of these lengths")


def losing(lengths: Sequence[int], terms: Terms) -> BatchPlan:
    """Forgets a sequence."""
    found = bytescale(lengths, terms)
    return replace(found, pieces=found.pieces[1:])
