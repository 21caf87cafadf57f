"""What rank 0 tells the others of a batch: its placement and where that came from, or why there is none."""

from __future__ import annotations

import json
import pickle
import zlib

from fourfold.compiler.online.log import as_text
from fourfold.hardware.errors import FourfoldError
from fourfold.ir.batch import BatchPlan

PLAN, ERROR = b"P", b"E"


def placement(batch: BatchPlan, origin: str) -> bytes:
    """A placement as bytes."""
    return PLAN + zlib.compress(json.dumps([origin, as_text(batch)]).encode(), 1)


def refusal(error: FourfoldError) -> bytes:
    """An error as bytes: its class and its text."""
    return ERROR + pickle.dumps((type(error), str(error)))


def opened(said: bytes) -> tuple[BatchPlan, str]:
    """What was told. Raises the error that was."""
    if said[:1] == ERROR:
        kind, text = pickle.loads(said[1:])
        raise kind(text)
    origin, text = json.loads(zlib.decompress(said[1:]))
    return BatchPlan.read(text, "what rank 0 told"), origin
