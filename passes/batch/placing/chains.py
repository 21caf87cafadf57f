"""Chunks of sequences on the ranks of a pool: which rank, which micro-steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fourfold.ir.batch import Piece


@dataclass(frozen=True, slots=True)
class Chain:
    """A sequence cut at tokens `cuts`, from 0 to its length, and the seconds that all of it takes a rank."""

    sequence: int
    cuts: tuple[int, ...]
    seconds: float

    @property
    def chunks(self) -> int:
        """How many."""
        return len(self.cuts) - 1

    @property
    def tokens(self) -> int:
        """Its length."""
        return self.cuts[-1]

    def pieces(self, rank: int, first: int) -> list[Piece]:
        """Its chunks in successive micro-steps of a rank."""
        pairs = zip(self.cuts, self.cuts[1:], strict=False)
        return [Piece(self.sequence, a, b, first + i, (rank,)) for i, (a, b) in enumerate(pairs)]


@dataclass(frozen=True, slots=True)
class Bin:
    """Whole sequences that a rank runs in one micro-step, and its seconds."""

    sequences: tuple[int, ...]
    seconds: float

    def pieces(self, rank: int, step: int, lengths: Sequence[int]) -> list[Piece]:
        """All of them."""
        return [Piece(i, 0, lengths[i], step, (rank,)) for i in self.sequences]


Packed = Callable[[int], list[Bin]]
"""The bins of a batch, when so many cells beside chunks are free."""


def dealt(chains: Sequence[Chain], bins: Packed, lengths: Sequence[int], ranks: int) -> tuple[Piece, ...]:
    """Ranks by themselves: the longest chain or bin next to the rank with least to do (LPT, Graham 1969).

    Each rank takes its micro-steps one after the other, chains first: the pipeline then ends with short ones.
    """
    pieces: list[Piece] = []
    loads, following = [0.0] * ranks, [0] * ranks
    packed = bins(-sum(chain.chunks for chain in chains) % ranks)
    for chain in sorted(chains, key=lambda one: (-one.seconds, one.sequence)):
        rank = loads.index(min(loads))
        pieces += chain.pieces(rank, following[rank])
        loads[rank] += chain.seconds
        following[rank] += chain.chunks
    for one in sorted(packed, key=lambda one: (-one.seconds, one.sequences)):
        rank = loads.index(min(loads))
        pieces += one.pieces(rank, following[rank], lengths)
        loads[rank] += one.seconds
        following[rank] += 1
    return tuple(pieces)


@dataclass(slots=True)
class Block:
    """Micro-steps in which all ranks go forward before they go backward: `first` and as many as its longest chain has.

    `free` micro-steps of each rank, from the first, hold no chunk; `room` is what its chains may add to the state.
    """

    first: int
    free: list[int]
    room: list[int]
    pieces: list[Piece] = field(default_factory=list)

    def take(self, chain: Chain) -> bool:
        """Whether a rank has the room: the chain then fills the last of its free micro-steps."""
        for rank, (free, room) in enumerate(zip(self.free, self.room, strict=True)):
            if chain.chunks <= free and chain.tokens <= room:
                self.free[rank] -= chain.chunks
                self.room[rank] -= chain.tokens
                self.pieces += chain.pieces(rank, self.first + self.free[rank])
                return True
        return False

    def cells(self) -> list[tuple[int, int]]:
        """(micro-step, rank) without a chunk, the last micro-step first: those are slowest, and run forward once."""
        found = [(self.first + at, rank) for rank, free in enumerate(self.free) for at in range(free)]
        return sorted(found, key=lambda cell: (-cell[0], cell[1]))


def in_step(chains: Sequence[Chain], bins: Packed, lengths: Sequence[int], ranks: int) -> tuple[Piece, ...]:
    """All ranks in step, as every micro-step gathers or reduces (ZeRO 2 and 3): blocks of micro-steps, then rounds.

    All ranks then run each other's forwards and backwards in one order, so chains of the same micro-steps cost their
    order once: those with most chunks begin a block, others end with it, or with what its ranks run already. The
    chains of a rank in a block are together no longer than its longest, whose state there is room for. Bins fill what
    is left of a block, slow ones the last micro-steps, and then rounds of like seconds.
    """
    blocks: list[Block] = []
    following = 0
    for chain in sorted(chains, key=lambda one: (-one.chunks, -one.tokens, one.sequence)):
        if not any(block.take(chain) for block in blocks):
            blocks.append(Block(following, [chain.chunks] * ranks, [chain.tokens] * ranks))
            blocks[-1].take(chain)
            following += chain.chunks
    cells = [cell for block in blocks for cell in block.cells()]
    pieces = [piece for block in blocks for piece in block.pieces]
    for at, one in enumerate(sorted(bins(len(cells)), key=lambda one: (-one.seconds, one.sequences))):
        beyond = at - len(cells)
        step, rank = cells[at] if beyond < 0 else (following + beyond // ranks, beyond % ranks)
        pieces += one.pieces(rank, step, lengths)
    return tuple(pieces)
