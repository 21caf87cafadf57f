"""What one rank runs of a batch, turn by turn: its tokens in regions, its teams in attention, what is moved between.

A turn is a micro-step in which this rank has something to do. Attention stores team behind team; regions run the same
tokens, but for the last that go to other ranks and those that others send here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from fourfold.ir.batch import BatchPlan, Move, Team
from fourfold.ir.batch_rules import of_sequences
from fourfold.ir.sequence.tokens import Shard, joined, named, stretch


@dataclass(frozen=True)
class Part:
    """A rank's place in one team. Of a chunk: the keys that each rank of the team holds of earlier chunks, and the
    tokens that this one holds of all of them."""

    team: Team
    place: int
    earlier: tuple[Shard, ...] = ()
    rows: int = 0

    @cached_property
    def shards(self) -> tuple[Shard, ...]:
        """What each rank of the team holds; documents are its pieces."""
        return self.team.shards()

    @property
    def held(self) -> Shard:
        """What this rank holds; documents are sequences of the batch."""
        return named(self.shards[self.place], [piece.sequence for piece in self.team.pieces])


@dataclass(frozen=True)
class Turn:
    """One micro-step of one rank of the pool.

    moves: the remap it takes part in; arriving: what it runs for others, in the order of their moves. most: tokens that
    any rank runs, where all are padded alike. offloaded: the share of what it keeps that waits in the host's memory.
    """

    rank: int
    micro_step: int
    parts: tuple[Part, ...]
    moves: tuple[Move, ...] = ()
    arriving: tuple[Shard, ...] = ()
    most: int = 0
    offloaded: float = 0.0

    @cached_property
    def attended(self) -> Shard:
        """Its tokens as attention stores them."""
        return joined([part.held for part in self.parts])

    @property
    def leaving(self) -> int:
        """Of them, those that other ranks' regions run: the last."""
        return sum(move.tokens for move in self.moves if move.source == self.rank)

    @cached_property
    def run(self) -> Shard:
        """Its tokens as regions store them; documents are sequences of the batch."""
        if not (self.leaving or self.arriving):
            return self.attended
        return joined((stretch(self.attended, 0, self.attended.tokens - self.leaving), *self.arriving))


def turns(batch: BatchPlan, rank: int, *, every: bool) -> tuple[Turn, ...]:
    """The turns of one rank: `every` micro-step where all ranks go in step, else its own, and at least one."""
    placed = _Placed(batch)
    steps = range(batch.micro_steps) if every else placed.steps(rank) or (0,)
    host = {one.micro_step: one.share for one in batch.offloads if one.rank == rank}
    found = []
    for step in steps:
        moves = tuple(move for move in placed.moves.get(step, ()) if rank in (move.source, move.target))
        arriving = tuple(placed.moved(move) for move in moves if move.target == rank)
        parts = placed.parts(rank, step)
        found.append(Turn(rank, step, parts, moves, arriving, offloaded=host.get(step, 0.0)))
    return tuple(found)


@dataclass(frozen=True)
class _Placed:
    """A batch plan, as its ranks ask about it."""

    batch: BatchPlan

    @cached_property
    def teams(self) -> dict[tuple[int, int], list[Team]]:
        """By (rank, micro-step), in the order they run."""
        found: dict[tuple[int, int], list[Team]] = {}
        for team in self.batch.teams:
            for rank in team.ranks:
                found.setdefault((rank, team.micro_step), []).append(team)
        return found

    @cached_property
    def moves(self) -> dict[int, tuple[Move, ...]]:
        """By micro-step."""
        return self.batch.moved

    @cached_property
    def chunks(self) -> dict[int, list[Team]]:
        """The teams of each sequence that goes through in chunks, in order."""
        every = of_sequences(self.batch)
        return {pieces[0].sequence: [Team.of([piece]) for piece in pieces] for pieces in every if len(pieces) > 1}

    def steps(self, rank: int) -> tuple[int, ...]:
        """The micro-steps in which a rank has pieces."""
        return tuple(sorted(step for one, step in self.teams if one == rank))

    def parts(self, rank: int, step: int) -> tuple[Part, ...]:
        """Its place in each of its teams."""
        return tuple(self._part(team, rank) for team in self.teams.get((rank, step), ()))

    def moved(self, move: Move) -> Shard:
        """The tokens of a move, as their source stores them: its last, move behind move."""
        held = joined([part.held for part in self.parts(move.source, move.micro_step)])
        leaving = [one for one in self.moves[move.micro_step] if one.source == move.source]
        low = held.tokens - _tokens(leaving[leaving.index(move) :])
        return stretch(held, low, low + move.tokens)

    def _part(self, team: Team, rank: int) -> Part:
        place, first = team.ranks.index(rank), team.pieces[0]
        chunks = self.chunks.get(first.sequence)
        if chunks is None:
            return Part(team, place)
        known = [one.shards() for one in chunks if one.pieces[0].start < first.start]
        earlier = tuple(joined([shards[at] for shards in known]) for at in range(len(team.ranks)))
        return Part(team, place, earlier, sum(one.shards()[place].tokens for one in chunks))


def _tokens(moves: Sequence[Move]) -> int:
    return sum(move.tokens for move in moves)
