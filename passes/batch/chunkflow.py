"""ChunkFlow: long sequences cut into chunks of one size, which a rank runs one after the other, keeping their keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import ceil

from fourfold.ir.batch import BatchPlan
from fourfold.passes.batch.placing.chains import Bin, Chain, dealt, in_step
from fourfold.passes.batch.placing.packing import Bins, evened, packed, spread
from fourfold.passes.batch.timing.refusal import FINEST, require_chunks
from fourfold.passes.batch.timing.terms import Terms
from fourfold.passes.batch.timing.timing import timed

RETAINED = (1, 2, 3, 4, 6, 8, 16)
"""Chunks of a sequence whose activations are kept: as many as there is room for, since each saves a forward."""


def chunkflow(lengths: Sequence[int], terms: Terms) -> BatchPlan:
    """The fastest of a grid over the size of a chunk and how many are kept; every sequence on a rank by itself.

    A sequence longer than a chunk is cut into as few as hold it, the first the shortest: those that are dropped are
    the first, so that fewest tokens run forward twice. Others are packed into bins of a chunk's size.
    Source: ChunkFlow (arXiv 2503.02356), algorithm 1 and its grid. Raises InfeasibleError for a sequence whose keys and
    values leave no room for a chunk.
    """
    require_chunks(lengths, terms, policy="chunkflow")
    tried = [_placed(lengths, size, kept, terms) for size, kept in _grid(lengths, terms)]
    return min(tried, key=lambda batch: timed(batch, terms).seconds)


def _grid(lengths: Sequence[int], terms: Terms) -> Iterator[tuple[int, int]]:
    """(size of a chunk, how many are kept), each once: with the keys of the longest they have room."""
    capacity, longest = terms.bounds.capacity, max(lengths)
    found = {(capacity, 1): None} if longest <= capacity else {}
    room = capacity - ceil(terms.bounds.state * longest)
    for kept in RETAINED:
        if room >= kept and (kept == 1 or room // kept * FINEST >= capacity):
            found[room // kept, kept] = None
    return iter(found)


def _placed(lengths: Sequence[int], size: int, kept: int, terms: Terms) -> BatchPlan:
    """Chunks of one size on the ranks of the pool."""
    chains = [_cut(i, length, size, kept, terms) for i, length in enumerate(lengths) if length > size]
    short = {i: length for i, length in enumerate(lengths) if length <= size}
    work = {i: terms.task(length, 1) for i, length in short.items()}
    ranks = terms.bounds.ranks

    def bins(cells: int) -> list[Bin]:
        """Bins that fill so many cells, and whole rounds of ranks beyond."""
        held = _bins(short, work, size, cells, ranks)
        return [Bin(each, terms.fixed + sum(work[i] for i in each)) for each in held]

    place = in_step if terms.bounds.zero > 1 else dealt
    pieces = place(chains, bins, lengths, ranks)
    return BatchPlan("chunkflow", tuple(lengths), ranks, terms.bounds.capacity, pieces, kept)


def _cut(sequence: int, length: int, size: int, kept: int, terms: Terms) -> Chain:
    """A sequence in as few chunks as hold it, and the seconds they take a rank, forwards that run again included."""
    count = -(-length // size)
    cuts = (0, *range(length - (count - 1) * size, length + 1, size))
    again = cuts[max(0, count - kept)]
    seconds = count * terms.fixed + terms.linear * length + terms.alone(length)
    if again:
        more = (count - kept) * terms.fixed + terms.linear * again
        seconds += terms.forward * more + terms.attends * terms.alone(again)
    return Chain(sequence, cuts, seconds)


def _bins(lengths: Mapping[int, int], work: Mapping[int, float], size: int, cells: int, ranks: int) -> Bins:
    """As few as hold all, then more, as even as can be: all cells that there are, or those and whole rounds."""
    if not lengths:
        return ()
    fewest = packed(lengths, size)
    if len(fewest) <= cells:
        return spread(lengths, work, cells, size) or fewest
    return evened(lengths, work, size, ranks, taken=-cells % ranks)
