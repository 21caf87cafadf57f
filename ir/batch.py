"""What one global batch does: which tokens of which sequence run when, on which ranks of the pool, by which method.

ChunkFlow cuts a sequence along time (micro-steps), ring and Ulysses along space (ranks); packing cuts nothing. One
placement says all of it, so that policies can be compared and one engine runs them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fourfold.hardware.errors import UsageError
from fourfold.ir.plan import Sharing
from fourfold.ir.sequence.tokens import Shard, laid, shifted, zigzag_tokens
from fourfold.ir.serial import from_plain, to_json

SCHEMA = "fourfold.batch/1"
RESIDENT = 2
"""Layers of a stage, the first, of which nothing goes to the host's memory. Source: ByteScale (arXiv 2502.21231, 5)."""


def spare(layers: int) -> float:
    """The most of what a stage of so many layers keeps for its backward that may wait in the host's memory."""
    return max(0, layers - RESIDENT) / layers if layers else 0.0


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens `start` to `stop` of one sequence: in this micro-step, on these ranks of the pool, by this method.

    method: a name of ir/sequence; of `usp`, with how many neighbours exchange heads: `usp8`.
    """

    sequence: int
    start: int
    stop: int
    micro_step: int
    ranks: tuple[int, ...]
    method: str = "whole"

    @property
    def tokens(self) -> int:
        """How many."""
        return self.stop - self.start

    def __str__(self) -> str:
        return f"{self.sequence}[{self.start}:{self.stop}]"


@dataclass(frozen=True, slots=True)
class Move:
    """Tokens that one rank's regions run for another in a micro-step; attention over them stays with `source`.

    They are the last that `source` stores, in the order of its moves, and the last that `target` stores.
    """

    micro_step: int
    source: int
    target: int
    tokens: int

    def __str__(self) -> str:
        return f"{self.source}>{self.target} {self.tokens}"


@dataclass(frozen=True, slots=True)
class Offload:
    """The share of what a rank keeps of one micro-step for its backward that waits in the host's memory."""

    micro_step: int
    rank: int
    share: float


@dataclass(frozen=True, slots=True)
class Team:
    """The pieces that the same ranks run together in one micro-step: packed where a rank is alone, else shared.

    sharing: how their tokens lie over the ranks, and which of these exchange heads.
    """

    micro_step: int
    ranks: tuple[int, ...]
    method: str
    pieces: tuple[Piece, ...]
    sharing: Sharing

    @classmethod
    def of(cls, pieces: Sequence[Piece]) -> Team:
        """The team of pieces of one micro-step."""
        one = pieces[0]
        return cls(one.micro_step, one.ranks, one.method, tuple(pieces), Sharing.named(one.method, len(one.ranks)))

    @property
    def tokens(self) -> int:
        """Of all its ranks."""
        return sum(piece.tokens for piece in self.pieces)

    def shards(self) -> tuple[Shard, ...]:
        """What each of its ranks holds; documents are its pieces, whose tokens count from the start of the sequence."""
        how, lengths = self.sharing, tuple(piece.tokens for piece in self.pieces)
        held = laid(how.layout, lengths, len(self.ranks), how.ulysses)
        starts = tuple(piece.start for piece in self.pieces)
        return tuple(shifted(one, starts) for one in held) if any(starts) else held

    def held(self) -> dict[int, int]:
        """Tokens of each rank: those of its shard."""
        u, lengths = self.sharing.ulysses, [piece.tokens for piece in self.pieces]
        groups = len(self.ranks) // u
        outer = [self.tokens] if groups == 1 else zigzag_tokens(lengths, groups)
        each = (total * (i + 1) // u - total * i // u for total in outer for i in range(u))
        return dict(zip(self.ranks, each, strict=True))


@dataclass(frozen=True)
class BatchPlan:
    """The placement of one batch on a pool of `ranks` ranks, each with room for `capacity` tokens a micro-step.

    policy: who decided. lengths: of the batch's sequences. Ranks take their micro-steps in order and leave out those in
    which they have no piece; where every micro-step gathers or reduces (ZeRO 2 and 3) they run an empty one.
    retained: of how many chunks of a sequence activations are kept until its backward; the others run forward again.
    """

    policy: str
    lengths: tuple[int, ...]
    ranks: int
    capacity: int
    pieces: tuple[Piece, ...]
    retained: int = 1
    moves: tuple[Move, ...] = ()
    offloads: tuple[Offload, ...] = ()

    @property
    def micro_steps(self) -> int:
        """Of the rank that has the last."""
        return 1 + max((piece.micro_step for piece in self.pieces), default=-1)

    @cached_property
    def teams(self) -> tuple[Team, ...]:
        """All teams, by micro-step; inside one the widest first, as the slowest messages should leave first.

        A chunk is a team of its own: its attention reads keys that it alone has.
        """
        found: dict[tuple[int, tuple[int, ...], str, int], list[Piece]] = {}
        for piece in self.pieces:
            chunk = piece.sequence if piece.tokens < self.lengths[piece.sequence] else -1
            found.setdefault((piece.micro_step, piece.ranks, piece.method, chunk), []).append(piece)
        order = sorted(found, key=lambda key: (key[0], -len(key[1]), *key[1:]))
        return tuple(Team.of(found[key]) for key in order)

    @cached_property
    def held(self) -> dict[tuple[int, int], int]:
        """Tokens by (rank, micro-step), where there are any."""
        found: dict[tuple[int, int], int] = {}
        for team in self.teams:
            for rank, tokens in team.held().items():
                found[rank, team.micro_step] = found.get((rank, team.micro_step), 0) + tokens
        return found

    @cached_property
    def run(self) -> dict[tuple[int, int], int]:
        """Tokens that regions run by (rank, micro-step): those held, less those moved away, and those moved here."""
        found = dict(self.held)
        for move in self.moves:
            for rank, more in ((move.source, -move.tokens), (move.target, move.tokens)):
                found[rank, move.micro_step] = found.get((rank, move.micro_step), 0) + more
        return found

    @property
    def moved(self) -> dict[int, tuple[Move, ...]]:
        """The moves of each micro-step that has any, in their order."""
        found: dict[int, tuple[Move, ...]] = {}
        for move in self.moves:
            found[move.micro_step] = (*found.get(move.micro_step, ()), move)
        return found

    def of(self, rank: int) -> Iterator[tuple[int, tuple[Team, ...]]]:
        """The micro-steps of one rank, each with its teams in the order in which they run."""
        mine: dict[int, list[Team]] = {}
        for team in self.teams:
            if rank in team.ranks:
                mine.setdefault(team.micro_step, []).append(team)
        return ((step, tuple(teams)) for step, teams in sorted(mine.items()))

    def __str__(self) -> str:
        title = (
            f"{self.policy}: {len(self.lengths)} sequences, {sum(self.lengths):,} tokens on {self.ranks} ranks of "
            f"{self.capacity:,}"
        )
        rows = [f"{step}  remap  {' '.join(map(str, moves))}" for step, moves in sorted(self.moved.items())]
        rows += [f"{one.micro_step}  offload  {one.rank} {one.share:.0%}" for one in self.offloads]
        return "\n".join((title, *(_line(team) for team in self.teams), *rows))

    def save(self, path: str | Path) -> None:
        """Writes it as JSON."""
        Path(path).write_text(json.dumps({"schema": SCHEMA, **json.loads(to_json(self))}), encoding="utf-8")

    @classmethod
    def read(cls, text: str, source: str = "this text") -> BatchPlan:
        """What `save` wrote as `text`. Raises UsageError for anything else."""
        try:
            data = json.loads(text)
            if data.pop("schema", None) != SCHEMA:
                raise ValueError(f"its schema is not {SCHEMA}")
            return from_plain(cls, data)
        except (AttributeError, LookupError, TypeError, ValueError, UsageError) as error:
            raise UsageError(f"{source} is not a batch plan: {error}; make it again") from error


def _line(team: Team) -> str:
    shown = " ".join(map(str, team.pieces[:4])) + (f" and {len(team.pieces) - 4} more" if len(team.pieces) > 4 else "")
    return f"{team.micro_step}  {spans(team.ranks)}  {team.method}  {team.tokens:,}: {shown}"


def spans(numbers: Sequence[int]) -> str:
    """Ascending numbers as text: `0-3,6`."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in found)
