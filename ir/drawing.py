"""Charts as SVG: a row for each stream of each rank, one axis of time, a colour for each kind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape, quoteattr

from fourfold.ir.chart import COMPUTE, Bar, Chart, Look, shown
from fourfold.ir.text import seconds

WIDTH, MARGIN, ROW, THIN, GAP = 1200, 150, 22, 10, 6
"""Pixels: of the picture, of the names on the left, of a row of computation and of communication, between ranks."""
LETTER = 7.0
"""Pixels of a letter on a bar."""
FAINT = 0.6
"""Opacity of every second stage of a rank."""
EDGED = 3.0
"""Pixels from which on a bar has an edge of its own."""
STYLE = "text{font:11px monospace;fill:#222}.t{font-weight:bold}.f{fill:#eee}.a{stroke:#999}"
TICKS = 5


def svg(charts: Sequence[Chart]) -> str:
    """The picture: charts beneath each other on one axis; what a bar is stands in its title."""
    total = max(chart.seconds for chart in charts)
    scale = (WIDTH - MARGIN - 20) / total if total else 0.0
    lines: list[str] = []
    top = GAP
    for chart in charts:
        top += ROW
        lines.append(_text(GAP, top - 8, f"{chart.title}: {seconds(chart.seconds)}", "t"))
        top = _ranks(chart, lines, top=top, scale=scale)
    lines += _axis(total, top, scale)
    legend, top = _legend(charts, top + 2 * ROW)
    lines += legend
    height = top + ROW
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}">'
    ground = '<rect width="100%" height="100%" fill="#fff"/>'
    return "\n".join([head, f"<style>{STYLE}</style>", ground, *lines, "</svg>", ""])


def _ranks(chart: Chart, lines: list[str], *, top: int, scale: float) -> int:
    """Adds the rows of a chart; where the next begins."""
    before: int | None = None
    for rank, stream, bars in chart.lanes():
        main = stream.split()[0] == COMPUTE
        top += GAP if rank != before else 0
        label = chart.ranks[rank] if rank != before else ""
        before, height = rank, ROW if main else THIN
        lines.append(_text(GAP, top + height - (7 if main else 1), label or f"  {stream}"))
        if main:
            lines.append(_rect(MARGIN, top, chart.seconds * scale, height, 'class="f"') + "</rect>")
        lines += [_bar(bar, chart.looks[bar.kind], top=top, height=height, scale=scale) for bar in bars]
        top += height + 1
    return top


def _bar(bar: Bar, look: Look, *, top: int, height: int, scale: float) -> str:
    left, wide = MARGIN + bar.start * scale, max(0.3, (bar.stop - bar.start) * scale)
    faint = f' fill-opacity="{FAINT}"' if bar.turn % 2 else ""
    edge = ' stroke="#fff" stroke-width="0.6"' if wide > EDGED else ""
    told = escape(f"{bar.name}: {seconds(bar.stop - bar.start)} from {seconds(bar.start)}")
    drawn = _rect(left, top, wide, height, f'fill="{look.colour}"{faint}{edge}') + f"<title>{told}</title></rect>"
    if height < ROW or wide < LETTER * len(bar.name) + 2:
        return drawn
    return drawn + _text(left + 2, top + height - 7, bar.name)


def _axis(total: float, top: int, scale: float) -> Iterator[str]:
    for i in range(TICKS):
        time = total * i / (TICKS - 1)
        at = MARGIN + time * scale
        yield f'<line class="a" x1="{at:.2f}" x2="{at:.2f}" y1="{GAP}" y2="{top + GAP}"/>'
        yield _text(at - (50 if i == TICKS - 1 else 0), top + ROW, seconds(time))


def _legend(charts: Sequence[Chart], top: int) -> tuple[list[str], int]:
    """What the colours mean, in as many rows as it takes; where the last row begins."""
    lines: list[str] = []
    left = MARGIN
    for look in shown(charts):
        wide = 32 + int(LETTER * len(look.words))
        if left > MARGIN and left + wide > WIDTH:
            left, top = MARGIN, top + ROW
        lines.append(_rect(left, top, 12, 12, f'fill="{look.colour}"') + "</rect>")
        lines.append(_text(left + 16, top + 10, look.words))
        left += wide
    return lines, top


def _rect(left: float, top: float, wide: float, height: float, look: str) -> str:
    return f'<rect x="{left:.2f}" y="{top}" width="{wide:.2f}" height="{height}" {look}>'


def _text(left: float, top: float, words: str, kind: str = "") -> str:
    name = f" class={quoteattr(kind)}" if kind else ""
    return f'<text x="{left:.2f}" y="{top}" xml:space="preserve"{name}>{escape(words)}</text>'
