"""A batch cut into micro-batches of like lengths and like tokens."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise


def blasted(lengths: Sequence[int], count: int) -> tuple[range, ...]:
    """At most `count` runs of these lengths, in their order, whose largest has the fewest tokens.

    Sorted lengths give runs of like lengths. Source: FlexSP (arXiv 2412.01523, 4.2), whose dynamic program minimises
    the same; here the most tokens of a run are halved in on, and a sweep fills runs up to them.
    """
    sums = list(accumulate(lengths, initial=0))
    low, high = max(lengths), sums[-1]
    while low < high:
        middle = (low + high) // 2
        if len(_swept(sums, middle)) - 1 <= count:
            high = middle
        else:
            low = middle + 1
    return tuple(range(start, stop) for start, stop in pairwise(_swept(sums, low)))


def _swept(sums: Sequence[int], most: int) -> list[int]:
    """Where runs begin, and the end: each as long as it has at most so many tokens."""
    cuts = [0]
    while cuts[-1] < len(sums) - 1:
        cuts.append(bisect_right(sums, sums[cuts[-1]] + most) - 1)
    return cuts
