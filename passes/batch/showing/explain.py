"""Why a sequence runs where it does: its pieces, and what it would take on other numbers of ranks, by each method."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fourfold.ir.batch import BatchPlan, Move, Offload, Piece
from fourfold.passes.batch.placing.zones import Zones, zones
from fourfold.passes.batch.timing.attentions import worth
from fourfold.passes.batch.timing.orders import again
from fourfold.passes.batch.timing.refusal import room
from fourfold.passes.batch.timing.terms import Terms


@dataclass(frozen=True, slots=True)
class Option:
    """A number of ranks for a sequence: seconds on each of them by every method, and whether they have room for it."""

    ranks: int
    tokens: int
    seconds: tuple[tuple[str, float], ...]
    room: bool

    @property
    def least(self) -> tuple[str, float]:
        """The method that takes the least, and its seconds."""
        return min(self.seconds, key=lambda one: one[1])

    @property
    def area(self) -> float:
        """Seconds of all the ranks together, by that method."""
        return self.ranks * self.least[1]


@dataclass(frozen=True, slots=True)
class Run:
    """A piece of the sequence: how many others its ranks run beside it, the fullest rank's tokens of all of them.

    twice: whether it goes forward twice, as what it keeps for its backward is dropped.

    moves: tokens that its ranks give away or take in the micro-step; offloads: what of it waits in the host's memory.
    """

    piece: Piece
    others: int
    tokens: int
    twice: bool
    moves: tuple[Move, ...]
    offloads: tuple[Offload, ...]


@dataclass(frozen=True, slots=True)
class Explained:
    """One sequence in one placement; `zones` are the lengths from which a ring hides its messages on this pool."""

    sequence: int
    length: int
    policy: str
    runs: tuple[Run, ...]
    options: tuple[Option, ...]
    zones: Zones

    @property
    def chosen(self) -> Option:
        """The number of ranks it got."""
        n = len(self.runs[0].piece.ranks)
        return next(option for option in self.options if option.ranks == n)

    @property
    def cheapest(self) -> Option:
        """Of those that have room for all of it, the one that takes all ranks together the least."""
        fitting = [option for option in self.options if option.room] or list(self.options)
        return min(fitting, key=lambda option: option.area)


def explained(batch: BatchPlan, terms: Terms, sequence: int) -> Explained:
    """What is known of a sequence; the prices are those that every policy is given."""
    length = batch.lengths[sequence]
    own = sorted((piece for piece in batch.pieces if piece.sequence == sequence), key=lambda piece: piece.start)
    counts = sorted({1, *worth(length, terms), *(len(piece.ranks) for piece in own)})
    options = tuple(_option(length, n, terms) for n in counts)
    return Explained(sequence, length, batch.policy, tuple(_runs(batch, terms, own)), options, zones(terms))


def _option(length: int, ranks: int, terms: Terms) -> Option:
    methods = terms.methods(ranks) if ranks > 1 else ("whole",)
    linear = terms.linear * length / ranks
    seconds = tuple((method, linear + terms.shared(length, ranks, method)) for method in methods)
    return Option(ranks, -(-length // ranks), seconds, length <= room(ranks, terms))


def _runs(batch: BatchPlan, terms: Terms, own: list[Piece]) -> Iterator[Run]:
    twice = again(batch, terms.bounds.zero)
    for piece in own:
        step, ranks = piece.micro_step, set(piece.ranks)
        beside = [one for one in batch.pieces if one.micro_step == step and not ranks.isdisjoint(one.ranks)]
        yield Run(
            piece,
            len(beside) - 1,
            max(batch.run[rank, step] for rank in ranks),
            (piece.ranks[0], step) in twice,
            tuple(m for m in batch.moves if m.micro_step == step and not ranks.isdisjoint((m.source, m.target))),
            tuple(one for one in batch.offloads if one.micro_step == step and one.rank in ranks),
        )
