"""Charts as text: a line of letters for each rank, a column a slice of time."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby

from fourfold.ir.chart import COMPUTE, Bar, Chart, Look, shown
from fourfold.ir.text import GAP, WIDTH, seconds

NUMBERED = ("F", "B", "I", "W")
"""Kinds whose letter is followed by the number of the micro-step, where there is room."""
IDLE, SOME, MORE = ".", ",", "-"
Key = tuple[str, int, int]
"""What tells neighbours on a line apart: kind, turn and micro-step."""


def text(charts: Sequence[Chart], width: int = WIDTH) -> list[str]:
    """Lines of at most `width`: the charts on one axis of time, and what the letters mean."""
    rows = [(chart, label, bars) for chart in charts for label, bars in _rows(chart)]
    margin = GAP + max((len(label) for _, label, _ in rows), default=0) + 1
    columns = max(20, width - margin - 1)
    column = max(chart.seconds for chart in charts) / columns
    found: list[str] = []
    for chart, group in groupby(rows, key=lambda row: row[0]):
        found += [f"{chart.title}: {seconds(chart.seconds)}"] if len(charts) > 1 else []
        for _, label, bars in group:
            cells = _cells(bars, column, round(chart.seconds / column), idle=not label.startswith(" "))
            line = "".join(_run(key, len(list(same)), chart.looks) for key, same in groupby(cells))
            found.append(" " * GAP + label.ljust(margin - GAP) + line.rstrip())
    return [*found, " " * margin + _axis(column * columns, columns), *_legend(charts, width)]


def _rows(chart: Chart) -> Iterator[tuple[str, tuple[Bar, ...]]]:
    """A line for what each rank computes, one beneath it for each sort of communication: the first word of a stream."""
    for (rank, sort), lanes in groupby(chart.lanes(), key=lambda lane: (lane[0], lane[1].split()[0])):
        label = chart.ranks[rank] if sort == COMPUTE else f"  {sort}"
        yield label, tuple(bar for _, _, bars in lanes for bar in bars)


def _cells(bars: Iterable[Bar], column: float, columns: int, *, idle: bool) -> list[Key | str]:
    """What stands in each column."""
    shares: list[dict[Key, float]] = [{} for _ in range(columns)]
    for bar in bars:
        key = (bar.kind, bar.turn, bar.micro_step)
        first, last = int(bar.start / column), min(columns - 1, int(bar.stop / column))
        for i in range(first, last + 1):
            part = min(bar.stop / column, i + 1) - max(bar.start / column, i)
            shares[i][key] = shares[i].get(key, 0.0) + part
    return [_cell(share, idle=idle) for share in shares]


def _cell(share: dict[Key, float], *, idle: bool) -> Key | str:
    """What takes most of a column; a character where that is nothing."""
    busy = sum(share.values())
    if busy >= 0.5 - 1e-6:
        return max(share, key=lambda key: share[key])
    if idle:
        return IDLE
    return SOME if busy > 1e-6 else " "


def _run(key: Key | str, length: int, looks: Mapping[str, Look]) -> str:
    if isinstance(key, str):
        return key * length
    kind, turn, step = key
    letter = looks[kind].letter
    if kind not in NUMBERED:
        return letter * length
    # Stages of one rank in turn: large letters, small ones, large ones.
    letter = letter.lower() if turn % 2 else letter
    full = f"{letter}{step}"
    return (full if len(full) <= length else letter).ljust(length, MORE)


def _axis(total: float, columns: int) -> str:
    """The start, the middle and the end of time."""
    middle, end = seconds(total / 2), seconds(total)
    half = "0 s".ljust(columns // 2 - len(middle) // 2) + middle
    return half + end.rjust(columns - len(half))


def _legend(charts: Sequence[Chart], width: int) -> list[str]:
    """The letters that occur."""
    bars = [bar for chart in charts for bar in chart.bars]
    small = any(bar.turn % 2 for bar in bars)
    words = [f"{look.letter} {look.words}" for look in shown(charts)]
    words += ["small letters: every second stage of a rank"] * small
    words += [f"{IDLE} nothing computed"]
    talk = any(bar.stream.split()[0] != COMPUTE for bar in bars)
    words += [f"{SOME} communicating less than half of a column"] * talk
    # A letter stays with its meaning.
    tied = [word.replace(" ", "\N{NO-BREAK SPACE}", 1) for word in words]
    lines = textwrap.wrap("; ".join(tied), width, initial_indent=" " * GAP, subsequent_indent=" " * GAP)
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines]
