"""Figures and small tables as plain text of at most 80 columns: what every value prints through."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

FIGURE = re.compile(r"(?<=\d) (?=%|[mu]?s\b|[TGMK]iB\b)")
"""The space between a number and its unit."""
WIDTH = 80
GAP = 2


@dataclass(frozen=True, slots=True)
class Section:
    """A titled table. `align` has one letter a column, l or r; the last column is wrapped where the line ends."""

    title: str
    rows: tuple[tuple[str, ...], ...] = ()
    align: str = "ll"

    def lines(self, width: int = WIDTH) -> list[str]:
        """The title, then one or more lines a row."""
        return [*textwrap.wrap(self.title, width), *_table(self.rows, self.align, width)]


def plain(sections: Iterable[Section], width: int = WIDTH) -> str:
    """Sections one after another, an empty line between."""
    return "\n\n".join("\n".join(section.lines(width)) for section in sections)


def seconds(value: float) -> str:
    """Three digits with a unit: `5.82 s`, `12.3 ms`."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if abs(value) >= 0.9995 * size:
            return f"{_three(value / size)} {unit}"
    return f"{_three(value / 1e-6)} us" if value else "0 s"


def size(value: float) -> str:
    """Bytes: `37.4 GiB`, `512 MiB`."""
    for unit, scale in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(value) >= 0.9995 * scale:
            return f"{_three(value / scale)} {unit}"
    return f"{value:.0f} B"


def sizes(low: float, high: float) -> str:
    """A band: `37.4 - 41.0 GiB`, one figure where both are alike."""
    first, second = size(low), size(high)
    if first == second:
        return first
    (start, unit), (_, other) = first.split(), second.split()
    return f"{start} - {second}" if unit == other else f"{first} - {second}"


def count(value: float) -> str:
    """A number of things: `8.03 B`, `70.6 M`, `524,288`."""
    for unit, scale in (("T", 1e12), ("B", 1e9), ("M", 1e6)):
        if abs(value) >= scale:
            return f"{_three(value / scale)} {unit}"
    return f"{value:,.0f}"


def percent(share: float) -> str:
    """`51 %`; below ten with a decimal."""
    return f"{100 * share:.1f} %" if abs(share) < 0.0995 else f"{100 * share:.0f} %"


def bar(low: float, high: float, limit: float, width: int = 30) -> str:
    """`#` up to low, `+` on to high, `.` up to the limit; `!` for what lies beyond it."""
    cells = [min(width, round(width * x / limit)) if limit > 0 else 0 for x in (low, high)]
    text = "#" * cells[0] + "+" * (cells[1] - cells[0])
    return text.ljust(width, ".") + ("!" if high > limit else "")


def _three(value: float) -> str:
    digits = 0 if abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    return f"{value:.{digits}f}"


def _table(rows: Sequence[Sequence[str]], align: str, width: int) -> list[str]:
    if not rows:
        return []
    last = len(align) - 1
    widths = [max(len(row[i]) for row in rows) for i in range(last)]
    indent = GAP + sum(w + GAP for w in widths)
    found = []
    for row in rows:
        cells = [
            cell.rjust(w) if how == "r" else cell.ljust(w) for cell, w, how in zip(row, widths, align, strict=False)
        ]
        head = " " * GAP + "".join(cell + " " * GAP for cell in cells)
        body = _wrapped(row[last], max(20, width - indent))
        found += [(head + body[0]).rstrip(), *(" " * indent + line for line in body[1:])]
    return found


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of at most `width`; a number stays with its unit."""
    tied = FIGURE.sub("\N{NO-BREAK SPACE}", text)
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in textwrap.wrap(tied, width, break_on_hyphens=False)] or [
        ""
    ]
