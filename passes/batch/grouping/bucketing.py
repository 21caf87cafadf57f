"""Lengths in buckets, each sequence counted as long as the longest of its bucket, with the least added in all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

LEAST = 16
"""Buckets of a micro-batch that has as many lengths (FlexSP's Q)."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """So many sequences that count as `length` tokens each."""

    length: int
    count: int


def bucketed(lengths: Sequence[int], *, room: int, least: int = LEAST) -> tuple[Bucket, ...]:
    """Buckets by ascending length, as few as do: `least`, and more while what is added could overfill the pool.

    That is while the tokens as counted are above the mean of those there are and the `room` of all ranks; as many
    buckets as lengths add nothing. Source: FlexSP (arXiv 2412.01523, 4.1.3); the growing is in its public code only.
    """
    distinct = sorted(Counter(lengths).items())
    layers = []
    for added, chosen in _layers(distinct):
        layers.append(chosen)
        enough = len(layers) >= least and 2 * (sum(lengths) + added) <= sum(lengths) + room
        if enough or len(layers) == len(distinct):
            break
    stop, found = len(distinct), []
    for chosen in reversed(layers):
        start = chosen[stop]
        found.append(Bucket(distinct[stop - 1][0], sum(count for _, count in distinct[start:stop])))
        stop = start
    return tuple(reversed(found))


def _layers(distinct: Sequence[tuple[int, int]]) -> Iterator[tuple[int, list[int]]]:
    """For 1, 2, .. buckets: tokens added in all, and where the last bucket of the first k lengths begins, by k.

    added[k][q] = min over j < k of added[j][q-1] + s_k (C_k - C_j) - (T_k - T_j), C and T being the sequences and
    tokens of the first lengths. In s_k it is a minimum of lines whose slopes -C_j fall, asked at rising s_k: a hull
    answers in O(K) what the paper's recurrence does in O(K^2).
    """
    counts, tokens = [0], [0]
    for length, count in distinct:
        counts.append(counts[-1] + count)
        tokens.append(tokens[-1] + length * count)
    before: list[int | None] = [0] + [None] * len(distinct)
    while True:
        hull: list[tuple[int, int, int]] = []
        added: list[int | None] = [None]
        chosen, at = [0], 0
        for k, (length, _) in enumerate(distinct, 1):
            known = before[k - 1]
            if known is not None:
                _push(hull, (counts[k - 1], known + tokens[k - 1], k - 1))
            at = min(at, max(0, len(hull) - 1))
            while at + 1 < len(hull) and _at(hull[at + 1], length) <= _at(hull[at], length):
                at += 1
            added.append(_at(hull[at], length) + length * counts[k] - tokens[k] if hull else None)
            chosen.append(hull[at][2] if hull else 0)
        last = added[-1]
        if last is None:
            return
        yield last, chosen
        before = added


def _at(line: tuple[int, int, int], length: int) -> int:
    return line[1] - line[0] * length


def _push(hull: list[tuple[int, int, int]], line: tuple[int, int, int]) -> None:
    """Adds a steeper line, and drops those that it and the ones before leave without a place."""
    while len(hull) > 1:
        (c1, b1, _), (c2, b2, _), (c3, b3, _) = hull[-2], hull[-1], line
        if (b3 - b1) * (c2 - c1) > (b2 - b1) * (c3 - c1):
            break
        hull.pop()
    hull.append(line)
