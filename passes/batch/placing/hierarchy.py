"""One micro-step dealt to nodes, then to the ranks of each: what is long is shared, the rest stays whole.

Both levels promote the longest sequence that stays whole until no rank holds more than its capacity, so both end.
Source: Zeppelin (arXiv 2509.21841, algorithms 1 and 2), where work is the square of the length; here it is seconds of
attention, shares are even (zigzag), and a whole sequence goes where there is room.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fourfold.passes.batch.timing.terms import Terms

Dealt = Mapping[int, tuple[int, ...]]
"""The ranks of each sequence, by its place in the batch."""


@dataclass(frozen=True, slots=True)
class Starts:
    """Tokens from which a sequence spans nodes, and from which it spans ranks, to begin with."""

    inter: float
    intra: float


def dealt(lengths: Mapping[int, int], room: int, starts: Starts, terms: Terms) -> Dealt | None:
    """The ranks of each sequence, of which none holds more than `room` tokens; None where all together have more."""
    nodes = nodes_of(terms)
    spread = over_nodes(lengths, [len(ranks) for ranks in nodes], room, starts.inter)
    if spread is None:
        return None
    found: dict[int, tuple[int, ...]] = {}
    tokens = dict.fromkeys(range(terms.bounds.ranks), 0.0)
    for i, numbers in spread.items():
        if len(numbers) > 1:
            found[i] = tuple(rank for number in numbers for rank in nodes[number])
            for rank in found[i]:
                tokens[rank] += lengths[i] / len(found[i])
    work = {length: terms.alone(length) for length in set(lengths.values())}
    for number, ranks in enumerate(nodes):
        whole = {i: lengths[i] for i, numbers in spread.items() if numbers == (number,)}
        seconds = {i: work[length] for i, length in whole.items()}
        found |= over_ranks(whole, seconds, {rank: room - tokens[rank] for rank in ranks}, starts.intra)
    return found


def nodes_of(terms: Terms) -> list[tuple[int, ...]]:
    """The ranks of each node; the last may have fewer."""
    pool = range(terms.bounds.ranks)
    return [tuple(pool[first : first + terms.node]) for first in range(0, len(pool), terms.node)]


def over_nodes(lengths: Mapping[int, int], sizes: Sequence[int], room: int, start: float) -> Dealt | None:
    """The nodes of each sequence: pieces of about the mean to those with least, then the others whole (algorithm 1)."""
    whole = {i: length for i, length in longest_first(lengths) if length < start}
    while True:
        shared = {i: length for i, length in longest_first(lengths) if i not in whole}
        found = _over_nodes(shared, whole, sizes, room)
        if found is not None or not whole:
            return found
        _promote(whole)


def _over_nodes(
    shared: Mapping[int, int], whole: Mapping[int, int], sizes: Sequence[int], room: int
) -> dict[int, tuple[int, ...]] | None:
    """One round of algorithm 1: None where a node would hold more than its ranks have room for."""
    tokens = [0.0] * len(sizes)
    mean = sum(shared.values()) / len(sizes)
    found: dict[int, tuple[int, ...]] = {}

    def least(count: int) -> list[int]:
        return sorted(range(len(sizes)), key=lambda n: tokens[n] / sizes[n])[:count]

    for i, length in shared.items():
        count = min(len(sizes), max(2, -(-length // max(1, int(mean)))))
        numbers = least(count)
        while len(numbers) < len(sizes) and any(
            tokens[n] + length * sizes[n] / sum(sizes[m] for m in numbers) > room * sizes[n] for n in numbers
        ):
            numbers = least(len(numbers) + 1)
        width = sum(sizes[n] for n in numbers)
        for n in numbers:
            tokens[n] += length * sizes[n] / width
        found[i] = tuple(sorted(numbers))
    for i, length in whole.items():
        n = min(range(len(sizes)), key=lambda n: (tokens[n] + length > room * sizes[n], tokens[n] / sizes[n]))
        tokens[n] += length
        found[i] = (n,)
    fits = all(held <= room * size for held, size in zip(tokens, sizes, strict=True))
    return found if fits else None


def over_ranks(
    lengths: Mapping[int, int], work: Mapping[int, float], rooms: Mapping[int, float], start: float
) -> Dealt:
    """The ranks of each sequence inside a node: as many as its share of the shared work, those with least, then the
    others whole (algorithm 2); all on all ranks where nothing less holds them."""
    whole = {i: length for i, length in longest_first(lengths) if length < start}
    while True:
        shared = {i: length for i, length in longest_first(lengths) if i not in whole}
        found = _over_ranks(shared, whole, work, rooms)
        if found is not None:
            return found
        if not whole:
            return dict.fromkeys(lengths, tuple(rooms))
        _promote(whole)


def _over_ranks(
    shared: Mapping[int, int], whole: Mapping[int, int], work: Mapping[int, float], rooms: Mapping[int, float]
) -> dict[int, tuple[int, ...]] | None:
    """One round of algorithm 2: None where a rank would hold more than it has room for."""
    left, seconds = dict(rooms), dict.fromkeys(rooms, 0.0)
    mean = sum(work[i] for i in shared) / len(rooms)
    found: dict[int, tuple[int, ...]] = {}
    for i, length in shared.items():
        count = max(1, min(len(rooms), round(work[i] / mean)))
        ranks = _with_room(length, count, left, seconds)
        for rank in ranks:
            left[rank] -= length / len(ranks)
            seconds[rank] += work[i] / len(ranks)
        found[i] = tuple(sorted(ranks))
    for i, length in whole.items():
        rank = min(left, key=lambda r: (left[r] < length, seconds[r]))
        left[rank] -= length
        seconds[rank] += work[i]
        found[i] = (rank,)
    return found if all(room >= 0.0 for room in left.values()) else None


def _with_room(length: int, count: int, left: Mapping[int, float], seconds: Mapping[int, float]) -> Sequence[int]:
    """At least `count` ranks with least work that hold an even share each; all ranks where none do."""
    for n in range(count, len(left) + 1):
        able = [rank for rank, room in left.items() if room >= length / n]
        if len(able) >= n:
            return sorted(able, key=lambda rank: seconds[rank])[:n]
    return tuple(left)


def _promote(whole: dict[int, int]) -> None:
    """Takes out the longest, with all that are as long."""
    most = max(whole.values())
    for i in [i for i, length in whole.items() if length == most]:
        del whole[i]


def longest_first(lengths: Mapping[int, int]) -> list[tuple[int, int]]:
    """Sequences and their lengths."""
    return sorted(lengths.items(), key=lambda one: (-one[1], one[0]))
