"""One error for a rank that died or hangs, on each of the others that waits for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from fourfold.hardware.errors import RunError

LOST = ("gloo/transport", "NCCL", "Connection closed by peer", "Connection reset by peer")
"""Words of the errors that tell of another rank."""


class LostRankError(RunError):
    """Another rank is gone: what it says itself, if anything, is the cause."""


@contextmanager
def reachable(what: str, timeout: float) -> Iterator[None]:
    """Runs a body of collectives; where another rank is lost in it, raises LostRankError that says so, and why.

    On GPUs NCCL's own watchdog may end the process before.
    """
    try:
        yield
    except RuntimeError as error:
        if not any(word in str(error) for word in LOST) and not isinstance(error, dist.DistError):
            raise
        why = str(error).strip().splitlines()[0].rsplit("] ", 1)[-1].split(". ")[0]
        raise LostRankError(
            f"{what} ended on rank {dist.get_rank()}: another rank died, or hung for {timeout:g} s ({why}); see what "
            "that rank wrote, and start again from the last checkpoint (torchrun --max-restarts does)"
        ) from error
