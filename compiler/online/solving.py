"""What a background process does: it is told a policy and its terms once, then answers lengths with placements."""

from __future__ import annotations

import os
from multiprocessing.connection import Connection

from fourfold.hardware.errors import FourfoldError
from fourfold.ir.batch import BatchPlan
from fourfold.passes.batch import Policy
from fourfold.passes.batch.timing.terms import Terms

NICE = 10
"""How far it stands back behind the rank that trains on the same cores."""

Answer = BatchPlan | FourfoldError | str
"""A placement, why there is none, or what went wrong."""


def serve(pipe: Connection) -> None:
    """Answers until the other end is gone."""
    os.nice(NICE)
    try:
        policy, terms = pipe.recv()
        while True:
            pipe.send(solved(policy, terms, pipe.recv()))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def solved(policy: Policy, terms: Terms, lengths: tuple[int, ...]) -> Answer:
    """One answer; whatever a policy raises is one, too."""
    try:
        return policy(lengths, terms)
    except FourfoldError as error:
        return error
    except Exception as error:
        return f"{type(error).__name__}: {error}"
