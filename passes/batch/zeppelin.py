"""Zones: short sequences whole, longer ones shared in a node, the longest over nodes; then tokens evened out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from fourfold.ir.batch import BatchPlan, Piece
from fourfold.passes.batch.placing.hierarchy import Dealt, Starts, dealt
from fourfold.passes.batch.placing.packing import evened, spread
from fourfold.passes.batch.placing.remap import remapped
from fourfold.passes.batch.placing.zones import METHOD, NOWHERE, Zones, zones
from fourfold.passes.batch.timing.clock import finished
from fourfold.passes.batch.timing.refusal import SLACK, require, room
from fourfold.passes.batch.timing.terms import Terms

TIGHT = 1.1
"""The mean of a rank's tokens times this is room enough where little is to be uneven."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What the algorithms are given: micro-steps beyond the fewest, how much room ranks have, and where they start.

    tight: room for little more than the mean. halved: so often is the length from which a sequence spans nodes.
    free: from which lengths more is shared from the start, as it hides its messages.
    """

    more: int = 0
    tight: bool = False
    halved: int = 0
    free: Zones = NOWHERE


CHANGES: tuple[Callable[[Choice, Terms], Choice], ...] = (
    lambda choice, _: replace(choice, tight=True),
    lambda choice, _: replace(choice, more=1),
    lambda choice, _: replace(choice, halved=1),
    lambda choice, _: replace(choice, halved=2),
    lambda choice, _: replace(choice, halved=3),
    lambda choice, terms: replace(choice, free=zones(terms)),
)
"""What is tried after the algorithms as printed, one after the other; what helps is kept."""


def zeppelin(lengths: Sequence[int], terms: Terms) -> BatchPlan:
    """The fastest found of the hierarchical partitions, which share only what does not fit, or more.

    A batch that fills the pool more than once is dealt to micro-steps first, even in work: the paper's input is one.
    Each micro-step's teams run over nodes, then inside them, then alone (BatchPlan.teams: widest first, and rings over
    nodes are wider than any node). Source: Zeppelin (arXiv 2509.21841). Raises InfeasibleError for what the pool
    cannot hold.
    """
    require(lengths, terms.bounds.ranks, terms, policy="zeppelin")
    choice = Choice()
    best = _placed(lengths, choice, terms)
    assert best is not None, "the fewest micro-steps hold the batch"
    least = finished(best, terms)
    for change in CHANGES:
        other = change(choice, terms)
        found = _placed(lengths, other, terms)
        if found is not None and (seconds := finished(found, terms)) < least:
            choice, best, least = other, found, seconds
    return best


def _placed(lengths: Sequence[int], choice: Choice, terms: Terms) -> BatchPlan | None:
    """The partition of each micro-step, and the remap that pays; None where there are not so many micro-steps."""
    deal = _micro_steps(lengths, choice.more, terms)
    if deal is None:
        return None
    pieces = [
        piece for step, sequences in enumerate(deal) for piece in _pieces(step, sequences, lengths, choice, terms)
    ]
    bounds = terms.bounds
    return remapped(BatchPlan("zeppelin", tuple(lengths), bounds.ranks, bounds.capacity, tuple(pieces)), terms)


def _micro_steps(lengths: Sequence[int], more: int, terms: Terms) -> Sequence[Sequence[int]] | None:
    """Sequences of each micro-step, even in work."""
    every = dict(enumerate(lengths))
    work = {i: terms.alone(length) + terms.linear * length for i, length in every.items()}
    capacity = room(terms.bounds.ranks, terms)
    fewest = evened(every, work, capacity, 1)
    return spread(every, work, len(fewest) + more, capacity) if more else fewest


def _pieces(step: int, sequences: Sequence[int], every: Sequence[int], choice: Choice, terms: Terms) -> Sequence[Piece]:
    """One micro-step; all on all where chunks that differ by a token leave no other way."""
    lengths = {i: every[i] for i in sequences}
    within = terms.bounds.capacity - SLACK
    if choice.tight:
        within = min(within, int(TIGHT * sum(lengths.values()) / terms.bounds.ranks) + SLACK)
    found = dealt(lengths, within, _starts(within, choice, terms), terms)
    if found is not None and _fits(cut := _cut(step, lengths, found), every, terms):
        return cut
    return _cut(step, lengths, dict.fromkeys(lengths, tuple(range(terms.bounds.ranks))))


def _starts(within: int, choice: Choice, terms: Terms) -> Starts:
    """The algorithms' own, which share what does not fit, or what the choice says beside."""
    inter, intra = min(terms.node, terms.bounds.ranks) * within + 1, within + 1
    return Starts(min(inter / 2**choice.halved, choice.free.inter), min(intra, choice.free.intra))


def _cut(step: int, lengths: Mapping[int, int], ranks: Dealt) -> Sequence[Piece]:
    return [Piece(i, 0, lengths[i], step, own, METHOD if len(own) > 1 else "whole") for i, own in ranks.items()]


def _fits(pieces: Sequence[Piece], lengths: Sequence[int], terms: Terms) -> bool:
    """Whether every rank has room for its shares as they are cut."""
    held = BatchPlan("zeppelin", tuple(lengths), terms.bounds.ranks, terms.bounds.capacity, tuple(pieces)).held
    return all(tokens <= terms.bounds.capacity for tokens in held.values())
