"""Sequences into bins: as few as hold them, then as even as can be."""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence

Bins = tuple[tuple[int, ...], ...]
"""Sequences, by their place in the batch."""


def packed(lengths: Mapping[int, int], capacity: int) -> Bins:
    """As few bins as best fit finds, longest first; no sequence is longer than a bin. Source: best-fit decreasing."""
    rooms: list[tuple[int, int]] = []
    held: list[list[int]] = []
    for i in _longest_first(lengths):
        at = bisect_left(rooms, (lengths[i], -1))
        if at == len(rooms):
            room, b = capacity, len(held)
            held.append([])
        else:
            room, b = rooms.pop(at)
        held[b].append(i)
        insort(rooms, (room - lengths[i], b))
    return tuple(map(tuple, held))


def spread(lengths: Mapping[int, int], work: Mapping[int, float], count: int, capacity: int) -> Bins | None:
    """At most `count` bins that differ little in work: the next longest to the one with least (LPT, Graham 1969).

    A bin without room for the next is not asked again; None where no bin has room left.
    """
    heap = [(0.0, b, capacity) for b in range(count)]
    held: list[list[int]] = [[] for _ in range(count)]
    for i in _longest_first(lengths):
        passed = []
        while heap and heap[0][2] < lengths[i]:
            passed.append(heapq.heappop(heap))
        if not heap:
            return None
        load, b, room = heap[0]
        heapq.heapreplace(heap, (load + work[i], b, room - lengths[i]))
        held[b].append(i)
        for one in passed:
            heapq.heappush(heap, one)
    return tuple(tuple(each) for each in held if each)


def evened(lengths: Mapping[int, int], work: Mapping[int, float], capacity: int, slots: int, *, taken: int = 0) -> Bins:
    """Bins that fill a whole number of rounds of `slots`, `taken` by others of them, in as few rounds as hold all.

    Even in work where that leaves room, else as few as can be.
    """
    if not lengths:
        return ()
    fewest = packed(lengths, capacity)
    count = -(-(len(fewest) + taken) // slots) * slots - taken
    return spread(lengths, work, count, capacity) or fewest


def _longest_first(lengths: Mapping[int, int]) -> Sequence[int]:
    return sorted(lengths, key=lambda i: (-lengths[i], i))
