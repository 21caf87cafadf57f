"""Seconds that no placement of a batch goes below."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import inf

from fourfold.passes.batch.attentions import WIDE, Attentions, degrees
from fourfold.passes.batch.terms import Terms

HALVES = 6
"""How often what a step may be is halved in on."""


def bound(lengths: Sequence[int], terms: Terms, *, offloaded: bool = False) -> float:
    """The larger of all work spread evenly over the ranks, and the longest sequence by its best number of ranks."""
    return max(sides(lengths, terms, offloaded=offloaded))


def sides(lengths: Sequence[int], terms: Terms, *, offloaded: bool = False) -> tuple[float, float]:
    """Seconds of all work spread evenly over the ranks, and of the longest sequence by its best number of ranks.

    Work is the least that sequences cost wherever they run, where those alone fill what others wait for messages; the
    longest by itself waits for its own, and a remap may spread what it has else to do. A placement that leaves
    something to the host's memory, or to others, is not held to the room of ranks: `offloaded` bounds those, too. A
    line of p stages runs p - 1 micro-steps more, of which one holds the longest.
    """
    ranks, more = terms.bounds.ranks, terms.stages - 1
    longest = max(lengths)
    alone = min(terms.fastest(longest, n)[0] for n in degrees(longest, terms))
    alone = min(alone, terms.alone(longest) / ranks) if ranks > WIDE else alone
    alone += terms.fixed + terms.linear * longest / ranks
    beside = terms.linear * sum(lengths) / ranks + _beside(sum(lengths), terms, offloaded)
    beside += more * (alone if terms.bounds.zero > 1 else terms.fixed)
    area = _spread(Attentions(Counter(lengths), terms, offloaded), beside)
    return terms.slowest * area, terms.slowest * (1 + more) * alone


def _spread(attentions: Attentions, beside: float) -> float:
    """Seconds of attentions and what is beside them, spread evenly, of which none takes a rank longer than all.

    A step of T seconds runs no sequence in a way that takes a rank longer; what is left takes f(T), which falls as T
    grows. No step is below min(T, f(T)), then, whatever T: it is halved in on between f(infinity) and f of that.
    """
    low = found = beside + attentions.least(inf)
    if attentions.terms.bounds.ranks > WIDE:
        return low
    stages = attentions.terms.stages
    high = beside + attentions.least(low / stages)
    for _ in range(HALVES if low < high < inf else 0):
        middle = (low + high) / 2
        other = beside + attentions.least(middle / stages)
        found = max(found, min(middle, other))
        low, high = (middle, high) if other > middle else (low, middle)
    return found


def _beside(tokens: int, terms: Terms, offloaded: bool) -> float:
    """Seconds of each rank, if they are spread evenly, that micro-steps cost beside what is in them.

    Each holds what its rank has room for; under ZeRO 2 and 3 all ranks run as many.
    """
    bounds = terms.bounds
    if offloaded:
        tokens = int(tokens * (1.0 - bounds.spare))
    cells = -(-tokens // bounds.capacity)
    return terms.fixed * (-(-cells // bounds.ranks) if bounds.zero > 1 else cells / bounds.ranks)
