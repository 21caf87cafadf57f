"""Zones: short sequences whole, longer ones shared in a node, the longest over nodes; then tokens evened out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from fourfold.ir.batch import BatchPlan, Piece
from fourfold.passes.batch.hierarchy import Dealt, Starts, dealt
from fourfold.passes.batch.packing import evened, spread
from fourfold.passes.batch.refusal import SLACK, require, room
from fourfold.passes.batch.remap import remapped
from fourfold.passes.batch.terms import Terms
from fourfold.passes.batch.timing import timed
from fourfold.passes.batch.zones import METHOD, zones

TIGHT = 1.1
"""The mean of a rank's tokens times this is room enough where little is to be uneven."""


def zeppelin(lengths: Sequence[int], terms: Terms) -> BatchPlan:
    """The fastest of the hierarchical partitions that begin with what must be shared or with what may be at no cost.

    A batch that fills the pool more than once is dealt to micro-steps first, even in work: the paper's input is one.
    Each micro-step's teams run over nodes, then inside them, then alone (BatchPlan.teams: widest first, and rings over
    nodes are wider than any node). Source: Zeppelin (arXiv 2509.21841). Raises InfeasibleError for what the pool
    cannot hold.
    """
    require(lengths, terms.bounds.ranks, terms, policy="zeppelin")
    tried = [remapped(batch, terms) for batch in _partitions(lengths, terms)]
    return min(tried, key=lambda batch: timed(batch, terms).seconds)


def _partitions(lengths: Sequence[int], terms: Terms) -> Iterator[BatchPlan]:
    """The batch by each start, in as few micro-steps as hold it or one more, of all the room there is or little more
    than the mean: the less, the more is shared."""
    for deal in _micro_steps(lengths, terms):
        for tight in (False, True):
            for free in (False, True):
                pieces = [
                    Piece(i, 0, lengths[i], step, ranks, METHOD if len(ranks) > 1 else "whole")
                    for step, held in enumerate(deal)
                    for i, ranks in _held(held, _room(held, terms, tight=tight), terms, free=free).items()
                ]
                yield BatchPlan("zeppelin", tuple(lengths), terms.bounds.ranks, terms.bounds.capacity, tuple(pieces))


def _room(lengths: Mapping[int, int], terms: Terms, *, tight: bool) -> int:
    """Tokens that a rank may hold of a micro-step."""
    most = terms.bounds.capacity - SLACK
    return min(most, int(TIGHT * sum(lengths.values()) / terms.bounds.ranks) + SLACK) if tight else most


def _starts(within: int, terms: Terms, *, free: bool) -> Starts:
    """The algorithms' own, which share what does not fit; or the zones, which share what hides its messages too."""
    printed = Starts(min(terms.node, terms.bounds.ranks) * within + 1, within + 1)
    if not free:
        return printed
    found = zones(terms)
    return Starts(min(printed.inter, found.inter), min(printed.intra, found.intra))


def _micro_steps(lengths: Sequence[int], terms: Terms) -> Iterator[Sequence[Mapping[int, int]]]:
    """Sequences of each micro-step, even in work."""
    every = dict(enumerate(lengths))
    work = {i: terms.alone(length) + terms.linear * length for i, length in every.items()}
    capacity = room(terms.bounds.ranks, terms) if terms.bounds.ranks > 1 else terms.bounds.capacity
    fewest = evened(every, work, capacity, 1)
    more = spread(every, work, len(fewest) + 1, capacity)
    for bins in (fewest, more):
        if bins is not None:
            yield [{i: lengths[i] for i in held} for held in bins]


def _held(lengths: Mapping[int, int], within: int, terms: Terms, *, free: bool) -> Dealt:
    """The ranks of each sequence of a micro-step; all on all where chunks that differ by a token leave no other way."""
    found = dealt(lengths, within, _starts(within, terms, free=free), terms)
    if found is not None and _fits(found, lengths, terms):
        return found
    return dict.fromkeys(lengths, tuple(range(terms.bounds.ranks)))


def _fits(found: Dealt, lengths: Mapping[int, int], terms: Terms) -> bool:
    """Whether every rank has room for its shares as they are cut."""
    pieces = [Piece(i, 0, lengths[i], 0, ranks, METHOD if len(ranks) > 1 else "whole") for i, ranks in found.items()]
    held = BatchPlan("zeppelin", (), terms.bounds.ranks, terms.bounds.capacity, tuple(pieces)).held
    return all(tokens <= terms.bounds.capacity for tokens in held.values())
