"""Seconds that no placement of a batch goes below."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import ceil, inf

from fourfold.passes.batch.timing.attentions import WIDE, Attentions, degrees
from fourfold.passes.batch.timing.terms import SLOWED, Terms

HALVES = 6
"""How often what a step may be is halved in on."""


def bound(lengths: Sequence[int], terms: Terms, *, offloaded: bool = False) -> float:
    """The larger of all work spread evenly over the ranks, and the longest sequence by its best number of ranks."""
    return max(sides(lengths, terms, offloaded=offloaded))


def sides(lengths: Sequence[int], terms: Terms, *, offloaded: bool = False) -> tuple[float, float]:
    """Seconds of all work spread evenly over the ranks, and of the longest sequence by its best number of ranks.

    Work is the least that sequences cost wherever they run, by the methods of the terms, where those alone fill what
    others wait for messages; the longest by itself waits for its own, and a remap may spread what it has else to do. A
    placement that leaves something to the host's memory, or to others, is not held to the room of ranks: `offloaded`
    bounds those, too. A line of p stages runs p - 1 micro-steps more, of which one holds the longest.
    """
    ranks, more = terms.bounds.ranks, terms.stages - 1
    longest = max(lengths)
    alone = min(terms.fastest(longest, n)[0] for n in degrees(longest, terms))
    alone = min(alone, terms.alone(longest) / ranks) if ranks > WIDE else alone
    alone += terms.fixed + terms.linear * longest / ranks
    filled = more * (alone if terms.bounds.zero > 1 else terms.fixed)
    area = _spread(Attentions(Counter(lengths), terms, offloaded), filled)
    return terms.slowest * area, terms.slowest * (1 + more) * alone


def _spread(attentions: Attentions, filled: float) -> float:
    """Seconds of all work spread evenly and of what fills a line of stages; nothing takes a rank longer than all.

    A step of T seconds runs no sequence in a way that takes a rank longer; what is left takes f(T), which falls as T
    grows. No step is below min(T, f(T)), then, whatever T: it is halved in on between f(infinity) and f of that.
    """
    low = found = _work(attentions, inf) + filled
    if attentions.terms.bounds.ranks > WIDE:
        return low
    high = _work(attentions, low) + filled
    for _ in range(HALVES if low < high < inf else 0):
        middle = (low + high) / 2
        other = _work(attentions, middle) + filled
        found = max(found, min(middle, other))
        low, high = (middle, high) if other > middle else (low, middle)
    return found


def _work(attentions: Attentions, most: float) -> float:
    """Seconds of each rank, were all work spread evenly, in ways of which none takes longer than a step of `most`."""
    terms, tokens = attentions.terms, sum(n * many for n, many in attentions.many.items())
    work = terms.linear * tokens / terms.bounds.ranks + attentions.least(most / terms.stages)
    if work == inf:
        return inf
    return work + (_hosted(tokens, work, terms) if attentions.offloaded else _beside(tokens, terms))


def _beside(tokens: float, terms: Terms) -> float:
    """Seconds of each rank, if they are spread evenly, that micro-steps cost beside what is in them.

    Each holds what its rank has room for; under ZeRO 2 and 3 all ranks run as many.
    """
    bounds = terms.bounds
    cells = ceil(tokens / bounds.capacity)
    return terms.fixed * (ceil(cells / bounds.ranks) if bounds.zero > 1 else cells / bounds.ranks)


def _hosted(tokens: int, work: float, terms: Terms) -> float:
    """The same where some of what each keeps may wait in the host's memory, and what is waited for it.

    m micro-steps of each rank keep m C tokens; the others' copies, T / R - m C, slow what they hide behind, the first
    forwards and the rest of m a + work seconds, or are waited for. Of all ranks and micro-steps together that is no
    more than of each by itself. It is straight in m but where one of the two begins to hide all, or nothing is copied:
    the least is at one of these, or at the fewest micro-steps.
    """
    each, copy = tokens / terms.bounds.ranks, terms.kept / terms.host if terms.host else inf
    fewest = _beside(tokens * (1.0 - terms.bounds.spare), terms) / terms.fixed if terms.fixed else 0.0
    if not terms.bounds.spare or copy == inf or not terms.fixed:
        return fewest * terms.fixed
    parts = terms.forward, 1.0 - terms.forward
    bends = [(copy * each - part * work) / (copy * terms.bounds.capacity + part * terms.fixed) for part in parts]
    bends.append(each / terms.bounds.capacity)

    def seconds(steps: float) -> float:
        copied = max(0.0, copy * (each - steps * terms.bounds.capacity))
        waits = sum(max(0.0, copied - part * (steps * terms.fixed + work)) for part in parts)
        return steps * terms.fixed + waits + 2 * SLOWED * copied

    return min(map(seconds, (fewest, *(steps for steps in bends if steps > fewest))))
