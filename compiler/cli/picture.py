"""Charts as a PNG, through matplotlib: an extra, asked for by name."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from fourfold.hardware.errors import UsageError

if TYPE_CHECKING:
    from fourfold.ir.chart import Chart

WIDE, HIGH, DOTS = 14.0, 0.35, 120
"""Inches of the picture and of a row, dots an inch."""

COLUMNS = 8
"""Of the legend, at most."""

EDGED = 0.003
"""Share of the whole time from which on a bar has an edge of its own."""


def check() -> None:
    """Raises UsageError where matplotlib is missing."""
    if find_spec("matplotlib") is None:
        raise UsageError("--png needs matplotlib: pip install 'fourfold[viz]', or draw with --svg, which needs nothing")


def png(charts: Sequence[Chart], path: str) -> None:
    """Writes the picture. Raises OSError."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    from fourfold.ir.chart import shown

    total = max(chart.seconds for chart in charts)
    lanes = [(chart, rank, stream, bars) for chart in charts for rank, stream, bars in chart.lanes()]
    figure = Figure(figsize=(WIDE, 1.5 + HIGH * len(lanes)), dpi=DOTS, layout="constrained")
    axes = figure.add_subplot()
    for row, (chart, _, _, bars) in enumerate(lanes):
        spans = [(bar.start, bar.stop - bar.start) for bar in bars]
        shades = [(chart.looks[bar.kind].colour, 0.6 if bar.turn % 2 else 1.0) for bar in bars]
        # Neighbours are told apart by a white edge; one too short for it keeps its own colour.
        edges = ["white" if long > EDGED * total else shade for (_, long), shade in zip(spans, shades, strict=True)]
        axes.broken_barh(spans, (row - 0.4, 0.8), facecolors=shades, edgecolors=edges, linewidth=0.6)
    axes.set_yticks(
        range(len(lanes)), [f"{chart.title} {chart.ranks[rank]} {stream}" for chart, rank, stream, _ in lanes]
    )
    axes.invert_yaxis()
    axes.set_xlim(0, total)
    axes.set_xlabel("seconds")
    known = [Patch(color=look.colour, label=look.words) for look in shown(charts)]
    figure.legend(handles=known, loc="outside lower center", ncols=min(COLUMNS, len(known)))
    figure.savefig(path, format="png")
