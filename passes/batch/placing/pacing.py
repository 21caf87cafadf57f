"""Ranks that are slower than predicted get less: those of a node exchange what they were given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from fourfold.ir.batch import BatchPlan, Piece
from fourfold.ir.batch_rules import complaints
from fourfold.passes.batch.timing.terms import Terms
from fourfold.passes.batch.timing.timing import timed


def paced(batch: BatchPlan, terms: Terms, paces: Sequence[float]) -> BatchPlan:
    """The placement with the fullest rank of each node on its fastest, if the step is then faster; else as it is.

    paces: for each rank of the pool, seconds measured over seconds predicted. Which ranks of a node are neighbours
    matters to no message inside it, so any may exchange all they were given. Alone, they are best so (the largest load
    times the least pace, and so on); in teams they wait for each other, and the timing decides.
    """
    if len(set(paces)) < 2:
        return batch
    found = exchanged(batch, _places(batch, terms, paces))
    faster = timed(found, terms, paces).seconds < timed(batch, terms, paces).seconds
    return found if faster and not complaints(found, terms.bounds) else batch


def exchanged(batch: BatchPlan, places: Mapping[int, int]) -> BatchPlan:
    """The placement with all of one rank's tokens, moves and offloads on another, by `places`: old to new."""
    moves = (replace(one, source=places[one.source], target=places[one.target]) for one in batch.moves)
    offloads = (replace(one, rank=places[one.rank]) for one in batch.offloads)
    pieces = tuple(_put(piece, places) for piece in batch.pieces)
    return replace(batch, pieces=pieces, moves=tuple(moves), offloads=tuple(offloads))


def _put(piece: Piece, places: Mapping[int, int]) -> Piece:
    return replace(piece, ranks=tuple(sorted(places[rank] for rank in piece.ranks)))


def _places(batch: BatchPlan, terms: Terms, paces: Sequence[float]) -> dict[int, int]:
    """For each rank the one of its node that takes its place: most work to the fastest."""
    busy = timed(batch, terms).busy
    found: dict[int, int] = {}
    for first in range(0, batch.ranks, terms.node):
        node = range(first, min(first + terms.node, batch.ranks))
        by_work = sorted(node, key=lambda rank: (-busy[rank], rank))
        found |= dict(zip(by_work, sorted(node, key=lambda rank: (paces[rank], rank)), strict=True))
    return found
