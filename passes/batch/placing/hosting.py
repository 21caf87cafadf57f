"""Micro-steps of more tokens than a rank has room for: how many, and what of them waits in the host's memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fourfold.ir.batch import BatchPlan, Offload
from fourfold.passes.batch.timing.refusal import SLACK
from fourfold.passes.batch.timing.terms import Terms

FREE = 0.5
"""The share of the host's memory that may hold what ranks leave to it."""
WORTH = 1.25
"""Times the room of a rank from which another width is worth a search."""


def widths(terms: Terms) -> Sequence[int]:
    """Tokens of a rank's micro-step beyond its room: as many as copies allow that short documents hide; the most."""
    bounds = terms.bounds
    if not bounds.spare or not terms.kept:
        return ()
    hidden = min(terms.forward, 1.0 - terms.forward) * terms.linear * terms.host / terms.kept
    most = min(_tokens(bounds.spare, terms), _held(terms))
    found = sorted({min(_tokens(min(hidden, bounds.spare), terms), most), most})
    return [tokens for tokens in found if tokens >= WORTH * bounds.capacity]


def share(tokens: int, terms: Terms) -> float:
    """What must go to the host's memory of so many tokens on one rank, which are more than it has room for.

    Beside what is kept, x tokens need memory inside a block and on the way: its gradients, the scratch of its
    attention, a layer that leaves or comes, here as much as two layers keep, t = 1 - spare of all. So
    (1 - r) x + t x = (1 + t) C, and r = (1 + t) (1 - C / x).
    """
    return (2.0 - terms.bounds.spare) * (1.0 - (terms.bounds.capacity - SLACK) / tokens)


def _tokens(most: float, terms: Terms) -> int:
    """Tokens of which this share must go."""
    return int((terms.bounds.capacity - SLACK) / (1.0 - min(most, terms.bounds.spare) / (2.0 - terms.bounds.spare)))


def _held(terms: Terms) -> int:
    """Tokens of which the host's memory holds all but what stays: a device's part, for a line's micro-steps."""
    each = min(FREE * group.node.host_memory / group.node.devices for group in terms.machine.groups)
    return terms.bounds.capacity + int(each / terms.kept / terms.stages)


def hosted(batch: BatchPlan, terms: Terms) -> BatchPlan:
    """With what must go to the host's memory so that ranks have room, beside what goes already."""
    known = {(one.rank, one.micro_step) for one in batch.offloads}
    over = [(key, n) for key, n in batch.held.items() if n > terms.bounds.capacity and key not in known]
    more = tuple(Offload(step, rank, share(n, terms)) for (rank, step), n in sorted(over))
    return replace(batch, offloads=batch.offloads + more)
