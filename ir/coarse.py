"""Charts of many ranks with fewer rows: neighbours drawn as one, by what most of their time goes to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from fourfold.ir.chart import COMPUTE, Bar, Chart, computes

SLICES = 480
"""Slices of time that are looked at, each by itself."""


def coarse(chart: Chart, rows: int) -> Chart:
    """The chart with at most `rows` rows of computation, each of a power of two of neighbours; as it is if it has few.

    In each slice of time a row shows the kind that takes most of its ranks' time, or nothing where that is most.
    """
    each = 1
    while -(-len(chart.ranks) // each) > rows:
        each *= 2
    if each == 1:
        return chart
    ranks = list(chart.ranks)
    groups = [ranks[at : at + each] for at in range(0, len(ranks), each)]
    place = {rank: at for at, group in enumerate(groups) for rank in group}
    shares = _shares(chart, place, len(groups))
    bars = (
        bar
        for at, group in enumerate(groups)
        for bar in _bars(at, shares[at], width=chart.seconds / SLICES, half=len(group) / 2)
    )
    names = {at: f"ranks {group[0]}-{group[-1]}" for at, group in enumerate(groups)}
    return Chart(chart.title, tuple(bars), chart.seconds, names, chart.looks)


def _shares(chart: Chart, place: Mapping[int, int], groups: int) -> list[list[dict[str, float]]]:
    """For each group and slice, the ranks' time by kind, in slices."""
    found: list[list[dict[str, float]]] = [[{} for _ in range(SLICES)] for _ in range(groups)]
    width = chart.seconds / SLICES
    for bar in filter(computes, chart.bars):
        start, stop = bar.start / width, bar.stop / width
        for at in range(int(start), min(SLICES - 1, int(stop)) + 1):
            here = found[place[bar.rank]][at]
            here[bar.kind] = here.get(bar.kind, 0.0) + max(0.0, min(stop, at + 1) - max(start, at))
    return found


def _bars(rank: int, shares: Sequence[Mapping[str, float]], *, width: float, half: float) -> Iterator[Bar]:
    """Slices of one kind that follow each other, as one bar."""
    kinds = [max(share, key=lambda kind: share[kind]) if sum(share.values()) >= half else "" for share in shares]
    for kind, same in groupby(enumerate(kinds), key=lambda one: one[1]):
        slices = [at for at, _ in same]
        if kind:
            yield Bar(rank, COMPUTE, kind, slices[0] * width, (slices[-1] + 1) * width, kind)
