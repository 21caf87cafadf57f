"""What is said of a sequence that a policy cannot place."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from fourfold.hardware.errors import InfeasibleError
from fourfold.passes.batch.timing.terms import Terms

SLACK = 2
"""Tokens by which the fullest rank of a group may be above the mean: chunks of a zigzag differ by one."""
FINEST = 16
"""Chunks that fill a rank's room are at most so many: finer ones run kernels of little work."""


def room(ranks: int, terms: Terms) -> int:
    """Tokens that `ranks` ranks hold together."""
    return terms.bounds.capacity if ranks == 1 else max(0, ranks * (terms.bounds.capacity - SLACK))


def require(lengths: Sequence[int], ranks: int, terms: Terms, *, policy: str) -> None:
    """Raises InfeasibleError for the longest sequence if `ranks` ranks, the most that the policy gives it, cannot."""
    longest = max(range(len(lengths)), key=lambda i: lengths[i])
    length = lengths[longest]
    if length <= room(ranks, terms):
        return
    wanted = -(-length // max(1, terms.bounds.capacity - SLACK))
    others = "a policy that shares it" if wanted <= terms.bounds.ranks else f"a pool of {wanted} ranks"
    capacity = -(-length // ranks) + (SLACK if ranks > 1 else 0)
    held = f"{ranks} rank{'s' * (ranks > 1)} of {terms.bounds.capacity:,} tokens hold {room(ranks, terms):,}"
    raise InfeasibleError(
        f"{policy} cannot place sequence {longest} of {length:,} tokens: {held}; a capacity of {capacity:,} would do, "
        f"or {others}"
    )


def require_chunks(lengths: Sequence[int], terms: Terms, *, policy: str) -> None:
    """Raises InfeasibleError for the longest sequence if its keys and values leave one rank no room for a chunk."""
    longest = max(range(len(lengths)), key=lambda i: lengths[i])
    length, capacity, state = lengths[longest], terms.bounds.capacity, terms.bounds.state
    least = max(1, capacity // FINEST)
    if length <= capacity or ceil(state * length) + least <= capacity:
        return
    enough = ceil(state * length * FINEST / (FINEST - 1)) + 2
    raise InfeasibleError(
        f"{policy} cannot place sequence {longest} of {length:,} tokens: its keys and values take a rank the room of "
        f"{state * length:,.0f} tokens of {capacity:,}, and a chunk of {least:,} goes beside them; a capacity of "
        f"{enough:,} would do, or a policy that shares it"
    )
