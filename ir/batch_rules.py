"""What must hold of every batch plan: one small function a rule, each naming what breaks it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from fourfold.ir.batch import BatchPlan, Piece, spans
from fourfold.ir.sequence import METHODS


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the static plan allows: ranks of the pool, tokens a rank holds, ZeRO stage, query heads of a tensor rank."""

    ranks: int
    capacity: int
    zero: int
    heads: int


Rule = Callable[[BatchPlan, Bounds], Iterator[str]]


def it_is_of_this_pool(batch: BatchPlan, bounds: Bounds) -> Iterator[str]:
    """Made for as many ranks, of the same room."""
    if (batch.ranks, batch.capacity) != (bounds.ranks, bounds.capacity):
        yield f"it is for {batch.ranks} ranks of {batch.capacity}, not for {bounds.ranks} of {bounds.capacity}"


def ranks_are_in_the_pool(batch: BatchPlan, _: Bounds) -> Iterator[str]:
    """At least one, each once, in ascending order."""
    for piece in batch.pieces:
        ranks = piece.ranks
        if not ranks or list(ranks) != sorted(set(ranks)) or ranks[0] < 0 or ranks[-1] >= batch.ranks:
            yield f"{piece} lies on ranks {ranks} of a pool of {batch.ranks}"


def every_token_is_computed_once(batch: BatchPlan, _: Bounds) -> Iterator[str]:
    """The pieces of a sequence follow each other from its first token to its last."""
    for piece in batch.pieces:
        if not 0 <= piece.sequence < len(batch.lengths):
            yield f"{piece} is of no sequence: there are {len(batch.lengths)}"
            return
    for sequence, pieces in enumerate(of_sequences(batch)):
        cuts = [0, *(piece.stop for piece in pieces)]
        starts = [*(piece.start for piece in pieces), batch.lengths[sequence]]
        if cuts != starts or any(piece.tokens < 1 for piece in pieces):
            covered = " ".join(map(str, pieces)) or "nowhere"
            yield f"sequence {sequence} of {batch.lengths[sequence]} tokens is computed as {covered}"


def ranks_have_room(batch: BatchPlan, bounds: Bounds) -> Iterator[str]:
    """What a rank holds in a micro-step is at most its capacity."""
    for (rank, step), tokens in batch.held.items():
        if tokens > bounds.capacity:
            yield f"rank {rank} holds {tokens} tokens in micro-step {step}, and has room for {bounds.capacity}"


def chunks_follow_each_other(batch: BatchPlan, _: Bounds) -> Iterator[str]:
    """Later chunks read keys that earlier ones left: in later micro-steps, on the same ranks."""
    for pieces in of_sequences(batch):
        for one, other in pairwise(pieces):
            if other.micro_step <= one.micro_step or other.ranks != one.ranks:
                where = (f"micro-step {p.micro_step} on ranks {spans(p.ranks)}" for p in (one, other))
                yield f"{one} is in {next(where)} and {other}, which needs its keys, in {next(where)}"


def methods_share(batch: BatchPlan, bounds: Bounds) -> Iterator[str]:
    """A rank alone shares nothing, several share by a known method; heads that are exchanged must be enough."""
    for team in batch.teams:
        n, method = len(team.ranks), team.method
        if method not in METHODS or (method == "whole") != (n == 1):
            yield f"ranks {spans(team.ranks)} run {method!r} in micro-step {team.micro_step}"
        elif method == "ulysses" and n > bounds.heads:
            yield f"ulysses on {n} ranks in micro-step {team.micro_step}: there are {bounds.heads} heads to exchange"


RULES: tuple[Rule, ...] = (
    it_is_of_this_pool,
    ranks_are_in_the_pool,
    every_token_is_computed_once,
    ranks_have_room,
    chunks_follow_each_other,
    methods_share,
)


def complaints(batch: BatchPlan, bounds: Bounds) -> tuple[str, ...]:
    """What breaks a rule; those of the first rule that is broken, as later ones build on it."""
    for rule in RULES:
        found = tuple(rule(batch, bounds))
        if found:
            return found
    return ()


def of_sequences(batch: BatchPlan) -> list[list[Piece]]:
    """The pieces of each sequence by their first token."""
    found: list[list[Piece]] = [[] for _ in batch.lengths]
    for piece in sorted(batch.pieces, key=lambda p: p.start):
        found[piece.sequence].append(piece)
    return found
