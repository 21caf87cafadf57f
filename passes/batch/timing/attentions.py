"""What the attentions of a batch cost at the least, however they are shared; the numbers of ranks that may pay."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf

from fourfold.ir.batch_rules import CHUNKED
from fourfold.passes.batch.timing.refusal import SLACK, room
from fourfold.passes.batch.timing.terms import Terms

TILE = 128
"""Queries that attention kernels take at once: ranks with fewer gain nothing."""
WIDE = 64
"""Ranks up to which methods are asked what they take; of more, a bound takes compute alone, without their messages."""
FILLED = (1.0, 0.95, 0.9, 0.8, 0.65, 0.5, 0.25, 0.0)
"""Shares of waits that are taken to be filled."""


@dataclass(frozen=True, slots=True)
class Way:
    """A sequence on so many ranks: seconds of each by the fastest method; and by each, seconds of all its ranks as
    (whatever is beside them, what fills waits of others there, or below 0 waits that others may fill)."""

    each: float
    costs: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Attentions:
    """Those of so many sequences of each length; offloaded: ranks may hold more than they have room for."""

    many: Mapping[int, int]
    terms: Terms
    offloaded: bool

    @cached_property
    def _short(self) -> float:
        """Seconds of those that fit a rank: they are cheapest there, and all of them fills waits."""
        fits = room(1, self.terms)
        return sum(many * self.terms.alone(n) for n, many in self.many.items() if n <= fits)

    @cached_property
    def _long(self) -> list[tuple[int, list[Way]]]:
        """How many there are of each other length, and its ways, the fewest ranks first."""
        fits, ways = room(1, self.terms), _anywhere if self.offloaded else _with_room
        return [(many, list(ways(n, self.terms))) for n, many in self.many.items() if n > fits]

    def least(self, most: float) -> float:
        """Seconds of each rank, were all spread evenly, by ways that take a rank at most so many; infinite without.

        On a rank what is alone, A, fills the waits W of what is shared, S: it takes S + max(0, A - W), which is no less
        than S + x (A - W) for any x of 0 to 1. With x given, each sequence by itself takes its cheapest way: the x
        that says most is the bound. At 1 others fill all waits; at 0 none are, and what is alone hides.
        """
        kept = [(many, _within(ways, most)) for many, ways in self._long]
        if not all(ways for _, ways in kept):
            return inf
        shares = FILLED if self.terms.bounds.ranks <= WIDE and kept else FILLED[:1]
        found = (
            sum(many * min(firm + x * filling for way in ways for firm, filling in way.costs) for many, ways in kept)
            + x * self._short
            for x in shares
        )
        return max(found) / self.terms.bounds.ranks


def _within(ways: Sequence[Way], most: float) -> Sequence[Way]:
    """From those of at most so many seconds, and the one before, as numbers of ranks between are not looked up."""
    first = next((at for at, way in enumerate(ways) if way.each <= most), None)
    return () if first is None else ways[max(0, first - 1) :]


def _anywhere(length: int, terms: Terms) -> Iterable[Way]:
    """Whole, on any number of ranks."""
    seconds = terms.alone(length)
    yield Way(seconds, ((0.0, seconds),))
    for n in degrees(length, terms) if terms.bounds.ranks <= WIDE else ():
        if n > 1:
            yield _whole(length, n, terms)


def _whole(length: int, ranks: int, terms: Terms) -> Way:
    """On several ranks; its waits may be filled."""
    shared = {way: terms.shared(length, ranks, way) for way in terms.methods(ranks)}
    costs = ((ranks * seconds, -ranks * terms.waits(length, ranks, way)) for way, seconds in shared.items())
    return Way(min(shared.values()), tuple(costs))


def _with_room(length: int, terms: Terms) -> Iterable[Way]:
    """Whole on as many ranks as hold it; or on fewer, which hold its keys, in chunks that one method shares.

    Of chunks those beyond the room that its keys leave run forward twice; the first, which see least. Their waits are
    not filled.
    """
    capacity, state, most = terms.bounds.capacity, terms.bounds.state, terms.bounds.ranks
    fewest, keys = -(-length // capacity), int(state * length / capacity) + 1
    for n in sorted({fewest, min(fewest - 1, most), keys, *degrees(length, terms)}):
        if not 0 < n <= most:
            continue
        if n >= fewest:
            yield _whole(length, n, terms)
        elif n >= keys:
            yield _chunked(length, n, max(0, min(length, int((1.0 + state) * length) - n * capacity)), terms)


def _chunked(length: int, ranks: int, again: int, terms: Terms) -> Way:
    """In chunks, of which so many tokens run forward twice."""
    region, attention = terms.forward * terms.linear * again, terms.attends * terms.alone(again) if again else 0.0
    if ranks == 1:
        return Way(terms.alone(length), ((region, terms.alone(length) + attention),))
    shared = [terms.shared(length, ranks, way) for way in CHUNKED]
    return Way(min(shared), tuple((ranks * seconds + region + attention, 0.0) for seconds in shared))


def degrees(length: int, terms: Terms) -> Sequence[int]:
    """Numbers of ranks close enough to each other that none between them is much faster."""
    most, node, heads = min(terms.bounds.ranks, WIDE), terms.node, terms.bounds.heads
    powers = [2**k for k in range(most.bit_length())]
    every = {*powers, *(3 * n for n in powers), *range(1, min(most, 8)), most, node, heads, worth(length, terms)[0]}
    # Groups of whole nodes, and any number inside one of more ranks than heads, have a method that others have not.
    every |= {*range(0, most + 1, terms.exchanging(node)), *range(heads, min(node, most) + 1)}
    return sorted(n for n in every if 0 < n <= most)


def worth(length: int, terms: Terms) -> tuple[int, ...]:
    """Numbers of ranks that may pay for a sequence: the fewest that hold it, and more that have whole tiles each."""
    most = terms.bounds.ranks
    fewest = 1 if length <= room(1, terms) else min(most, -(-length // (terms.bounds.capacity - SLACK)))
    wide = max(fewest, min(most, length // TILE))
    powers = (2**k for k in range(wide.bit_length()))
    return tuple(sorted({fewest, wide, *(n for n in powers if fewest <= n)}))
