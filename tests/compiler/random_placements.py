"""Placements that no policy would make: chunks, teams of ranks that are no neighbours, moves, all at random."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random

from fourfold.hardware.errors import InfeasibleError
from fourfold.ir.batch import BatchPlan, Move, Piece
from fourfold.ir.batch_rules import CHUNKED, Bounds, complaints
from fourfold.passes.batch.timing.terms import Terms


@dataclass(frozen=True)
class AtRandom:
    """A policy: a placement that keeps the rules, the same for the same seed."""

    seed: int

    def __call__(self, lengths: Sequence[int], terms: Terms) -> BatchPlan:
        """Raises InfeasibleError where many tries find no room."""
        random = Random(self.seed)
        for _ in range(300):
            made = drawn(tuple(lengths), terms.bounds, random)
            if made is not None and not complaints(made, terms.bounds):
                return with_moves(made, random)
        raise InfeasibleError("no room")


def drawn(lengths: tuple[int, ...], bounds: Bounds, random: Random) -> BatchPlan | None:
    """Each sequence somewhere, whole or in chunks; None where one finds no room."""
    load: Counter[tuple[int, int]] = Counter()
    pieces: list[Piece] = []
    micro_steps, retained = random.choice((3, 5, 7)), random.choice((1, 1, 2, 3))
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        for _ in range(60):
            own = parts(i, lengths[i], micro_steps, bounds, random)
            more = Counter({(rank, p.micro_step): share(p) for p in own for rank in p.ranks})
            if all(load[key] + tokens <= bounds.capacity for key, tokens in more.items()):
                load += more
                pieces += own
                break
        else:
            return None
    return BatchPlan("random", lengths, bounds.ranks, bounds.capacity, tuple(pieces), retained)


def parts(i: int, length: int, micro_steps: int, bounds: Bounds, random: Random) -> tuple[Piece, ...]:
    """One sequence on some ranks, in one micro-step or several."""
    ranks = tuple(sorted(random.sample(range(bounds.ranks), random.choice((1, 1, *range(1, bounds.ranks + 1))))))
    count = random.choice((2, 2, 3)) if length > 6 and random.random() < 0.4 else 1
    steps = sorted(random.sample(range(micro_steps), count))
    cuts = [0, *sorted(random.sample(range(1, length), count - 1)), length] if count > 1 else [0, length]
    ways = CHUNKED if count > 1 else (*CHUNKED, *exchanging(len(ranks), bounds.heads))
    method = "whole" if len(ranks) == 1 else random.choice(ways)
    spans = zip(steps, cuts, cuts[1:], strict=False)
    return tuple(Piece(i, start, stop, step, ranks, method) for step, start, stop in spans)


def exchanging(ranks: int, heads: int) -> Iterator[str]:
    """Methods by which some of so many ranks, or all, exchange heads."""
    for u in range(2, min(ranks, heads) + 1):
        if ranks % u == 0:
            yield "ulysses" if u == ranks else f"usp{u}"


def share(piece: Piece) -> int:
    """Tokens of the rank that holds most of it, or one more."""
    return -(-piece.tokens // len(piece.ranks)) + (len(piece.ranks) > 1)


def with_moves(batch: BatchPlan, random: Random) -> BatchPlan:
    """In some micro-steps half of the ranks give tokens to the others, some or all of what they hold."""
    moves: list[Move] = []
    for step in range(batch.micro_steps):
        here = [rank for rank in range(batch.ranks) if (rank, step) in batch.held]
        if random.random() < 0.5:
            moves += given(batch, step, random.sample(here, len(here)), lambda left: random.randint(0, left))
    return replace(batch, moves=tuple(moves))


def given(batch: BatchPlan, step: int, ranks: Sequence[int], how_many: Callable[[int], int]) -> Iterator[Move]:
    """Moves from the first half of some ranks to the rest, as far as those have room; `how_many` of what is left."""
    half = len(ranks) // 2
    room = {rank: batch.capacity - batch.held[rank, step] for rank in ranks[half:]}
    for source in ranks[:half]:
        left = batch.held[source, step]
        for target in room:
            tokens = min(room[target], how_many(left))
            if tokens:
                yield Move(step, source, target, tokens)
                left -= tokens
                room[target] -= tokens
