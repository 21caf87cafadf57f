"""Policies that do what `auto` does where it pays, everywhere: something waits in the host's memory, tokens are moved,
heads are exchanged by some ranks and keys go around the others.

They are for runs that show these parts at work, and what each costs; no batch is placed well by them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fourfold.ir.batch import BatchPlan, Move, Offload
from fourfold.passes.batch import POLICIES
from fourfold.passes.batch.static_cp import alike
from fourfold.passes.batch.timing.terms import Terms

SHARE = 0.5
"""Of what a rank keeps of a micro-step for its backward."""
MOVED = 2048
"""Tokens at most that go to another rank's regions."""


def offloaded(lengths: Sequence[int], terms: Terms) -> BatchPlan:
    """`pack`, where half of what each micro-step keeps, or as much as may, waits in the host's memory."""
    batch = POLICIES["pack"](lengths, terms)
    share = min(SHARE, terms.bounds.spare)
    places = sorted({(piece.micro_step, rank) for piece in batch.pieces for rank in piece.ranks} if share else ())
    return replace(batch, policy="offloaded", offloads=tuple(Offload(step, rank, share) for step, rank in places))


def moved(lengths: Sequence[int], terms: Terms) -> BatchPlan:
    """`pack`, where in each micro-step that two ranks share the fullest gives tokens to the emptiest."""
    batch = POLICIES["pack"](lengths, terms)
    moves = []
    for step in range(batch.micro_steps):
        held = {rank: tokens for (rank, at), tokens in batch.held.items() if at == step}
        if len(held) < 2:
            continue
        source, target = max(held, key=lambda rank: (held[rank], rank)), min(held, key=lambda rank: (held[rank], rank))
        tokens = min(MOVED, held[source] // 2, terms.bounds.capacity - held[target])
        moves += [Move(step, source, target, tokens)] if source != target and tokens else []
    return replace(batch, policy="moved", moves=tuple(moves))


def by_twos(lengths: Sequence[int], terms: Terms) -> BatchPlan:
    """Every sequence over all ranks, an even number beyond two, of which each two exchange heads."""
    batch = alike(lengths, terms.bounds.ranks, terms, policy="by twos")
    return replace(batch, pieces=tuple(replace(piece, method="usp2") for piece in batch.pieces))
