"""Policies compared: their table, their placement drawn with letters, and both as JSON values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from fourfold.ir.text import GAP, percent, seconds, size

if TYPE_CHECKING:
    from fourfold.ir.batch import BatchPlan
    from fourfold.ir.chart import Chart, Look
    from fourfold.ir.plan import Plan
    from fourfold.passes.batch.showing.compare import Compared
    from fourfold.passes.batch.timing.terms import Terms

HEADS = ("", "step", "to\nbound", "balance", "sent\nin node", "sent\nacross", "room\nused", "micro-\nsteps", "solving")
TITLE = "Policies, the fastest first; no placement is faster than the bound"
SENT = "sent: bytes of attention that a rank sends at most in a step; weights and gradients are alike for all"
ROWS = 24
"""Lines of a drawn placement."""


def table(found: Sequence[Compared], terms: Terms) -> Table:
    """Policies that placed the batch, the fastest first, at most 80 columns wide."""
    drawn = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    for at, head in enumerate(HEADS):
        drawn.add_column(head, justify="right" if at else "left", no_wrap=True, vertical="bottom")
    for at, row in enumerate(_rows(found, terms)):
        drawn.add_row(*row, style="" if at else "bold")
    return drawn


def _rows(found: Sequence[Compared], terms: Terms) -> Iterator[tuple[str, ...]]:
    from fourfold.passes.batch.showing.talk import talk

    for one in found:
        if one.batch is None or one.timing is None:
            continue
        time, sent = one.timing, talk(one.batch, terms)
        yield (
            one.policy,
            seconds(time.seconds),
            f"+{percent(time.gap)}",
            percent(time.balance),
            size(sent.inside),
            size(sent.between),
            percent(room_used(one.batch)),
            str(one.batch.micro_steps),
            seconds(one.solving),
        )


def room_used(batch: BatchPlan) -> float:
    """Of the fullest rank in its fullest micro-step: its tokens, less what waits in the host's memory, of its room."""
    host = {(one.rank, one.micro_step): one.share for one in batch.offloads}
    return max(tokens * (1.0 - host.get(key, 0.0)) for key, tokens in batch.run.items()) / batch.capacity


def bounds(found: Sequence[Compared], terms: Terms) -> tuple[str, float, float]:
    """Which bounds the step from below, `area` or `longest`, and the seconds of both."""
    from fourfold.passes.batch.timing.bounding import sides

    batches = [one.batch for one in found if one.batch is not None]
    offloaded = any(max(batch.held.values()) > batch.capacity for batch in batches)
    area, longest = (terms.once + side for side in sides(batches[0].lengths, terms, offloaded=offloaded))
    return ("area" if area >= longest else "longest"), area, longest


def bound(found: Sequence[Compared], terms: Terms) -> str:
    """What no placement is faster than, in words."""
    by, area, longest = bounds(found, terms)
    if by == "area":
        return f"{seconds(area)}: all work spread evenly; the longest sequence takes {seconds(longest)}"
    return f"{seconds(longest)}: the longest sequence; all work spread evenly takes {seconds(area)}"


def painted(chart: Chart, width: int) -> Iterator[Text]:
    """The lines of a placement: rows of letters in the colours of their sequences, and what they mean."""
    from fourfold.ir.coarse import coarse
    from fourfold.ir.gantt import text

    few = coarse(chart, ROWS)
    margin = 2 * GAP + max(map(len, few.ranks.values()))
    by_letter = {look.letter: look for look in few.looks.values()}
    for at, line in enumerate(text([few], width)):
        painted = Text(line[:margin])
        for letter, same in groupby(line[margin:]):
            painted.append("".join(same), style=_style(by_letter.get(letter)) if at < len(few.ranks) else "")
        yield painted


def _style(look: Look | None) -> str:
    """Letters on the colour of their sequence; the rest and what is idle is faint."""
    return f"black on {look.colour}" if look is not None and look.letter.isalpha() else "dim"


def as_data(plan: Plan, found: Sequence[Compared], terms: Terms) -> Mapping[str, object]:
    """The comparison as JSON values: seconds, tokens and bytes."""
    from fourfold.ir.report import settings
    from fourfold.passes.batch.showing.talk import talk

    rows = []
    for one in found:
        row: dict[str, object] = {"policy": one.policy, "solving": one.solving}
        if one.batch is None or one.timing is None:
            row["refused"] = one.refused
        else:
            sent, fullest = talk(one.batch, terms), max(one.batch.run.values())
            row |= {"step": one.timing.seconds, "bound": one.timing.bound, "gap": one.timing.gap}
            row |= {"balance": one.timing.balance, "micro_steps": one.batch.micro_steps}
            row |= {"sent": {"in_node": sent.inside, "across": sent.between}}
            row |= {"fullest": fullest, "room_used": room_used(one.batch), "pieces": len(one.batch.pieces)}
        rows.append(row)
    workload = {"sequences": plan.workload.sequences, "tokens": plan.workload.tokens, "longest": plan.workload.longest}
    by, area, longest = bounds(found, terms)
    least = {"seconds": max(area, longest), "by": by, "area": area, "longest": longest}
    given = {"schema": "fourfold.policies/1", "workload": workload, "plan": settings(plan), "bound": least}
    return {**given, "policies": rows}
