"""What must hold of every batch plan: one small function a rule, each naming what breaks it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from fourfold.ir.batch import BatchPlan, Piece, spans
from fourfold.ir.sequence import EXCHANGING, METHODS


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the static plan allows.

    ranks: of the pool. capacity: tokens whose activations a rank has room for at once. heads: query heads of a tensor
    rank. As shares of what a token keeps for its backward: `state`, its keys, values and their gradients' sums, which
    stay from the first chunk of a sequence to the last; `spare`, what may wait in the host's memory.
    """

    ranks: int
    capacity: int
    zero: int
    heads: int
    state: float = 0.0
    spare: float = 0.0


CHUNKED = ("ring", "gather_kv")
"""Methods by which several ranks share a chunk of a sequence, beside the keys of those before it."""

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
    """What a rank runs in a micro-step is at most its capacity, less what it leaves to the host's memory."""
    host = {(one.rank, one.micro_step): one.share for one in batch.offloads}
    for key, tokens in batch.run.items():
        if tokens * (1.0 - host.get(key, 0.0)) > bounds.capacity:
            yield f"rank {key[0]} holds {tokens} tokens in micro-step {key[1]}, and has room for {bounds.capacity}"


def chunks_have_room(batch: BatchPlan, bounds: Bounds) -> Iterator[str]:
    """The chunks of a sequence that are kept at once, and the keys and values of all, are at most the capacity."""
    if batch.retained < 1:
        yield f"{batch.retained} chunks are kept; there must be one that its backward begins with"
    for pieces in of_sequences(batch):
        if len(pieces) < 2:
            continue
        ranks, kept = len(pieces[0].ranks), sorted((piece.tokens for piece in pieces), reverse=True)[: batch.retained]
        needed = (sum(kept) + bounds.state * pieces[-1].stop) / ranks
        if needed > bounds.capacity:
            yield (
                f"{batch.retained} chunks of sequence {pieces[0].sequence} and its keys and values take the room of "
                f"{needed:,.0f} tokens a rank, and there is room for {bounds.capacity:,}"
            )


def moves_are_of_what_is_there(batch: BatchPlan, _: Bounds) -> Iterator[str]:
    """Ranks that run attention in the micro-step give at most what they hold, to other ranks that do not give."""
    given: dict[tuple[int, int], int] = {}
    for move in batch.moves:
        key = move.source, move.micro_step
        given[key] = given.get(key, 0) + move.tokens
        if move.source == move.target or move.tokens < 1 or not 0 <= move.target < batch.ranks:
            yield f"micro-step {move.micro_step} moves {move}: from one rank of the pool to another, at least one token"
        if (move.target, move.micro_step) not in batch.held:
            yield f"micro-step {move.micro_step} moves {move}, and rank {move.target} runs nothing in it"
        if given[key] > batch.held.get(key, 0):
            yield f"rank {move.source} moves {given[key]} of {batch.held.get(key, 0)} tokens in {move.micro_step}"
    for move in batch.moves:
        if (move.target, move.micro_step) in given:
            yield f"rank {move.target} gives and takes tokens in micro-step {move.micro_step}"


def offloads_are_shares(batch: BatchPlan, bounds: Bounds) -> Iterator[str]:
    """One for a rank's micro-step, of what may go."""
    known: set[tuple[int, int]] = set()
    for one in batch.offloads:
        if not 0.0 < one.share <= bounds.spare or (one.rank, one.micro_step) in known:
            most = f"{bounds.spare:.0%} may, once"
            yield f"{one.share:.0%} of micro-step {one.micro_step} of rank {one.rank} go to the host: {most}"
        known.add((one.rank, one.micro_step))


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
        n, method, u = len(team.ranks), team.sharing.method, team.sharing.ulysses
        where = f"{team.method} on {n} ranks in micro-step {team.micro_step}"
        if method not in METHODS or (method == "whole") != (n == 1):
            yield f"ranks {spans(team.ranks)} run {team.method!r} in micro-step {team.micro_step}"
        elif (u > 1) != (method in EXCHANGING):
            yield f"{where}: how many of them exchange heads is not said, as in usp2"
        elif n % u:
            yield f"{where}: they are no groups of {u} that exchange heads"
        elif u > bounds.heads:
            yield f"{where}: there are {bounds.heads} heads to exchange"
        elif n > 1 and method not in CHUNKED and any(p.tokens < batch.lengths[p.sequence] for p in team.pieces):
            yield f"ranks {spans(team.ranks)} run chunks in micro-step {team.micro_step} by {method}, which cannot"


RULES: tuple[Rule, ...] = (
    it_is_of_this_pool,
    ranks_are_in_the_pool,
    every_token_is_computed_once,
    methods_share,
    moves_are_of_what_is_there,
    offloads_are_shares,
    ranks_have_room,
    chunks_have_room,
    chunks_follow_each_other,
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
