"""Seconds that no placement of a batch goes below, and the numbers of ranks that may pay for a sequence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from fourfold.passes.batch.refusal import SLACK, room
from fourfold.passes.batch.terms import Terms

TILE = 128
"""Queries that attention kernels take at once: ranks with fewer gain nothing."""


WIDE = 64
"""Ranks up to which methods are asked what they take; of more, a bound takes compute alone, without their messages."""


def bound(lengths: Sequence[int], terms: Terms, *, offloaded: bool = False) -> float:
    """The larger of all work spread evenly over the ranks, and the longest sequence by its best number of ranks."""
    return max(sides(lengths, terms, offloaded=offloaded))


def sides(lengths: Sequence[int], terms: Terms, *, offloaded: bool = False) -> tuple[float, float]:
    """Seconds of all work spread evenly over the ranks, and of the longest sequence by its best number of ranks.

    Work is the least that each sequence costs wherever it runs, when others fill what it waits for messages; the
    longest alone waits for its own, and a remap may spread what it has else to do. A placement that leaves something to
    the host's memory, or to others, is not held to the room of ranks: `offloaded` bounds those, too. A line of p
    stages runs p - 1 micro-steps more, of which one holds the longest.
    """
    ranks, more = terms.bounds.ranks, terms.stages - 1
    work = sum(many * (terms.linear * n + _attention(n, terms, offloaded)) for n, many in Counter(lengths).items())
    longest = max(lengths)
    alone = min(terms.fastest(longest, n)[0] for n in _degrees(longest, terms))
    alone = min(alone, terms.alone(longest) / ranks) if ranks > WIDE else alone
    alone += terms.fixed + terms.linear * longest / ranks
    area = work / ranks + _beside(sum(lengths), terms, offloaded)
    filled = more * (alone if terms.bounds.zero > 1 else terms.fixed)
    return terms.slowest * (area + filled), terms.slowest * (1 + more) * alone


def _attention(length: int, terms: Terms, offloaded: bool) -> float:
    """Seconds of all ranks together for the attention of a sequence, and for what is run again of it.

    One that fits a rank is cheapest there. A longer one is shared by as many ranks as hold it; or by fewer in chunks,
    of which those beyond the room that its keys leave run forward twice; the first, which see least.
    """
    if offloaded or length <= room(1, terms):
        return terms.alone(length)
    capacity, fewest = terms.bounds.capacity, worth(length, terms)[0]
    known: list[float] = []
    for n in {fewest, max(1, fewest - 1), *_degrees(length, terms)}:
        seconds = n * terms.least(length, n)
        if n < fewest:
            again = max(0, min(length, round((1.0 + terms.bounds.state) * length) - n * capacity))
            seconds += terms.forward * terms.linear * again + (terms.attends * terms.alone(again) if again else 0.0)
        known.append(seconds)
    return min(known)


def _beside(tokens: int, terms: Terms, offloaded: bool) -> float:
    """Seconds of each rank, if they are spread evenly, that micro-steps cost beside what is in them.

    Each holds what its rank has room for; under ZeRO 2 and 3 all ranks run as many.
    """
    bounds = terms.bounds
    if offloaded:
        tokens = int(tokens * (1.0 - bounds.spare))
    cells = -(-tokens // bounds.capacity)
    return terms.fixed * (-(-cells // bounds.ranks) if bounds.zero > 1 else cells / bounds.ranks)


def _degrees(length: int, terms: Terms) -> Sequence[int]:
    """Numbers of ranks close enough to each other that none between them is much faster."""
    most = min(terms.bounds.ranks, WIDE)
    powers = [2**k for k in range(most.bit_length())]
    every = {*powers, *(3 * n for n in powers), *range(1, min(most, 8)), most, worth(length, terms)[0]}
    return sorted(n for n in every if n <= most)


def worth(length: int, terms: Terms) -> tuple[int, ...]:
    """Numbers of ranks that may pay for a sequence: the fewest that hold it, and more that have whole tiles each."""
    most = terms.bounds.ranks
    fewest = 1 if length <= room(1, terms) else min(most, -(-length // (terms.bounds.capacity - SLACK)))
    wide = max(fewest, min(most, length // TILE))
    powers = (2**k for k in range(wide.bit_length()))
    return tuple(sorted({fewest, wide, *(n for n in powers if fewest <= n)}))
