"""Which tokens of which documents each rank of a group holds, and in what order it stores them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate, pairwise
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Run:
    """`count` tokens of one document, at positions start, start + step, ..; stored one after another from `at`."""

    document: int
    start: int
    count: int
    step: int
    at: int


@dataclass(frozen=True, slots=True)
class Shard:
    """The runs of one rank in storage order; inside a document, by position."""

    runs: tuple[Run, ...]
    tokens: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", sum(run.count for run in self.runs))

    @property
    def by_document(self) -> dict[int, list[Run]]:
        """The runs of each document of which this rank holds tokens, in storage order."""
        found: dict[int, list[Run]] = {}
        for run in self.runs:
            found.setdefault(run.document, []).append(run)
        return found


Piece = tuple[int, int, int, int]
"""(document, start, count, step) of a run whose place in storage follows from its order."""


def shard(pieces: Sequence[Piece]) -> Shard:
    """The shard that stores these pieces in order; empty ones are left out."""
    kept = [piece for piece in pieces if piece[2]]
    ats = accumulate((piece[2] for piece in kept), initial=0)
    return Shard(tuple(Run(*piece, at) for piece, at in zip(kept, ats, strict=False)))


def contiguous(lengths: Sequence[int], n: int) -> tuple[Shard, ...]:
    """The packed documents cut into n stretches whose sizes differ by one token at most: balanced only uncausally."""
    starts = list(accumulate(lengths, initial=0))
    total = starts[-1]
    cuts = [total * rank // n for rank in range(n + 1)]
    return tuple(shard(list(_between(lengths, starts, low, high))) for low, high in pairwise(cuts))


def zigzag(lengths: Sequence[int], n: int) -> tuple[Shard, ...]:
    """Each document in 2n chunks, rank r with chunks r and 2n - 1 - r: causal work is equal.

    Chunks of a document differ by one token at most; which are longer turns from document to document, so that ranks
    differ little in tokens. Source: zigzag ring attention (ring-flash-attention).
    """
    held: list[list[Piece]] = [[] for _ in range(n)]
    turn = 0
    for document, length in enumerate(lengths):
        bounds, turn = _chunks(length, 2 * n, turn)
        for rank in range(n):
            first, second = bounds[rank], bounds[2 * n - 1 - rank]
            held[rank] += [(document, low, high - low, 1) for low, high in (first, second)]
    return tuple(shard(_merged(pieces)) for pieces in held)


def zigzag_tokens(lengths: Sequence[int], n: int) -> list[int]:
    """How many tokens each shard of `zigzag` holds: the longer chunks of all documents follow each other in turn."""
    least, more = (sum(part) for part in zip(*(divmod(length, 2 * n) for length in lengths), strict=True))
    every, rest = divmod(more, 2 * n)
    chunks = [least + every + (i < rest) for i in range(2 * n)]
    return [chunks[rank] + chunks[-1 - rank] for rank in range(n)]


def striped(lengths: Sequence[int], n: int) -> tuple[Shard, ...]:
    """Token p of a document on rank (p + document) % n: causal work is equal to within a diagonal.

    Source: Striped Attention (arXiv 2311.09431); the turn by document keeps short ones from filling rank 0.
    """
    held: list[list[Piece]] = [[] for _ in range(n)]
    for document, length in enumerate(lengths):
        for rank in range(n):
            first = (rank - document) % n
            held[rank].append((document, first, len(range(first, length, n)), n))
    return tuple(shard(pieces) for pieces in held)


LAYOUTS: Mapping[str, Callable[[Sequence[int], int], tuple[Shard, ...]]] = MappingProxyType(
    {"contiguous": contiguous, "zigzag": zigzag, "striped": striped}
)
"""How a group cuts its documents, by name."""


@lru_cache(maxsize=256)
def laid(layout: str, lengths: tuple[int, ...], n: int, inner: int = 1) -> tuple[Shard, ...]:
    """The shards of n ranks: `layout` over n / inner of them, each of these shards cut into `inner` stretches.

    Neighbours that exchange heads (Ulysses) then hold, together and in order, one shard of the layout.
    """
    outer = LAYOUTS[layout](lengths, n // inner)
    return tuple(part for one in outer for part in _stretches(one, inner))


def _stretches(held: Shard, n: int) -> tuple[Shard, ...]:
    """What one rank stores, cut into n stretches whose sizes differ by one token at most."""
    cuts = [held.tokens * rank // n for rank in range(n + 1)]
    return tuple(stretch(held, low, high) for low, high in pairwise(cuts))


def stretch(held: Shard, low: int, high: int) -> Shard:
    """What is stored from place `low` to place `high`."""
    spans = [(run, max(low, run.at), min(high, run.at + run.count)) for run in held.runs]
    return shard([(run.document, run.start + (a - run.at) * run.step, b - a, run.step) for run, a, b in spans if a < b])


def named(held: Shard, documents: Sequence[int]) -> Shard:
    """The same tokens, document i called documents[i]."""
    return Shard(tuple(Run(documents[run.document], run.start, run.count, run.step, run.at) for run in held.runs))


def shifted(held: Shard, starts: Sequence[int]) -> Shard:
    """The same tokens, each document's counted on from its start."""
    moved = ((run, run.start + starts[run.document]) for run in held.runs)
    return Shard(tuple(Run(run.document, start, run.count, run.step, run.at) for run, start in moved))


def joined(shards: Sequence[Shard]) -> Shard:
    """What a rank holds that stores all shards one behind the other."""
    if len(shards) == 1:
        return shards[0]
    offsets = accumulate((one.tokens for one in shards), initial=0)
    runs = [
        Run(run.document, run.start, run.count, run.step, run.at + offset)
        for one, offset in zip(shards, offsets, strict=False)
        for run in one.runs
    ]
    return Shard(tuple(runs))


@lru_cache(maxsize=256)
def ordered(held: Shard) -> tuple[Shard, tuple[int, ...] | None]:
    """The same tokens stored by document and position, and the old place of each new one; None where nothing moves."""
    pieces = _merged([(run.document, run.start, run.count, run.step) for run in held.runs])
    if pieces == sorted(pieces) and all(step == 1 for *_, step in pieces):
        return shard(pieces), None
    places: dict[int, list[tuple[int, int]]] = {}
    for run in held.runs:
        rows = places.setdefault(run.document, [])
        rows += [(run.start + i * run.step, run.at + i) for i in range(run.count)]
    found: list[Piece] = []
    index: list[int] = []
    for document in sorted(places):
        rows = sorted(places[document])
        index += [place for _, place in rows]
        found += _pieces(document, [position for position, _ in rows])
    return shard(found), None if index == list(range(len(index))) else tuple(index)


def _pieces(document: int, positions: list[int]) -> Iterator[Piece]:
    """Sorted positions as maximal runs; three make a run of a step over 1."""
    at = 0
    while at < len(positions):
        step = positions[at + 1] - positions[at] if at + 1 < len(positions) else 1
        past = at + 1
        while past < len(positions) and positions[past] - positions[past - 1] == step:
            past += 1
        if step > 1 and past - at < 3:
            step, past = 1, at + 1
        yield document, positions[at], past - at, step
        at = past


def _between(lengths: Sequence[int], starts: Sequence[int], low: int, high: int) -> Iterator[Piece]:
    for document, length in enumerate(lengths):
        first, last = max(low, starts[document]), min(high, starts[document] + length)
        if first < last:
            yield document, first - starts[document], last - first, 1


def _chunks(length: int, count: int, turn: int) -> tuple[list[tuple[int, int]], int]:
    """`count` chunks as (low, high); the longer ones begin at chunk `turn`, and the next document's turn."""
    base, more = divmod(length, count)
    sizes = [base + ((i - turn) % count < more) for i in range(count)]
    return list(pairwise(accumulate(sizes, initial=0))), (turn + more) % count


def _merged(pieces: Sequence[Piece]) -> list[Piece]:
    """Neighbours of one document that follow each other, as one."""
    found: list[Piece] = []
    for document, start, count, step in pieces:
        last = found[-1] if found else (-1, 0, 0, 0)
        if count and step == last[3] == 1 and last[0] == document and last[1] + last[2] == start:
            found[-1] = (document, found[-1][1], found[-1][2] + count, step)
        elif count:
            found.append((document, start, count, step))
    return found
