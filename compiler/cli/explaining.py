"""`--explain`: where one sequence runs, what touches it there, and what other places would cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from math import inf
from typing import TYPE_CHECKING

from fourfold.ir.text import Section, percent, seconds

if TYPE_CHECKING:
    from fourfold.passes.batch.showing.compare import Compared
    from fourfold.passes.batch.showing.explain import Explained, Option, Run

LISTED = 6
"""Pieces and moves of a sequence that are listed one by one."""


def sections(told: Explained, found: Sequence[Compared]) -> Iterator[Section]:
    """The sequence by the fastest policy, on other numbers of ranks, and by the other policies."""
    title = f"Sequence {told.sequence}, {told.length:,} tokens, by {told.policy}"
    yield Section(title, tuple(_where(told)))
    rows = [("ranks", "tokens each", "seconds", "of all", "by")]
    rows += [_option(option, told) for option in told.options]
    yield Section("Seconds of this sequence alone, on each rank and of all of them", tuple(rows), "rrrrl")
    others = tuple(_elsewhere(told.sequence, found))
    if others:
        yield Section("By every policy", others)


def _where(told: Explained) -> Iterator[tuple[str, str]]:
    for run in told.runs[:LISTED]:
        yield "runs", _run(run)
    if len(told.runs) > LISTED:
        last = told.runs[-1].piece
        yield "", f"and {len(told.runs) - LISTED} chunks more, the last in micro-step {last.micro_step}"
    if len(told.runs) > 1:
        again = sum(run.twice for run in told.runs)
        yield "chunks", f"{len(told.runs)}, each beside the keys of those before it; {again} run forward twice"
    for run in told.runs[:LISTED]:
        yield from _touched(run)
    yield "costs", _costs(told)
    yield "zone", _zone(told)


def _run(run: Run) -> str:
    from fourfold.ir.batch import spans

    piece = run.piece
    ranks = f"rank{'s' * (len(piece.ranks) > 1)} {spans(piece.ranks)}"
    beside = f"beside {run.others:,} others" if run.others else "with no other"
    where = f"{piece} in micro-step {piece.micro_step}, {piece.method} on {ranks}"
    return f"{where}, {beside}; {run.tokens:,} tokens a rank"


def _touched(run: Run) -> Iterator[tuple[str, str]]:
    step = run.piece.micro_step
    if run.moves:
        shown = " ".join(map(str, run.moves[:LISTED])) + " .." * (len(run.moves) > LISTED)
        yield "remap", f"in micro-step {step} its ranks move tokens around attention: {shown}"
    for one in run.offloads[:LISTED]:
        yield "offload", f"{percent(one.share)} of what rank {one.rank} keeps of micro-step {step} waits in host memory"


def _zone(told: Explained) -> str:
    """How far it may be shared at no wait."""
    known = told.zones
    found = [
        f"{where} from {tokens:,.0f} tokens"
        for where, tokens in (("inside a node", known.intra), ("over several", known.inter))
        if tokens < inf
    ]
    hidden = f"a ring hides its messages {' and '.join(found)}" if found else "no ring hides its messages here"
    return f"{known.of(told.length)}: {hidden}"


def _costs(told: Explained) -> str:
    """What the number of ranks costs over the one that takes all ranks the least."""
    chosen, cheapest = told.chosen, told.cheapest
    if chosen is cheapest:
        return "no number of ranks that holds it takes less of all ranks' time"
    more, there = chosen.area / cheapest.area - 1, f"{cheapest.ranks} rank{'s' * (cheapest.ranks > 1)}"
    if more < 0:
        return f"{percent(-more)} less of all ranks' time than on {there}, the fewest that hold it whole"
    done = f"{seconds(chosen.least[1])} instead of {seconds(cheapest.least[1])}"
    return f"{percent(more)} more of all ranks' time than on {there}, where it takes least; done in {done}"


def _option(option: Option, told: Explained) -> tuple[str, str, str, str, str]:
    (method, least), others = option.least, sorted(option.seconds, key=lambda one: one[1])[1:]
    words = method + (f" ({', '.join(f'{name} {seconds(each)}' for name, each in others)})" if others else "")
    words += "" if option.room else "; no room for all of it at once"
    words += "  <- here" if option is told.chosen else ""
    return str(option.ranks), f"{option.tokens:,}", seconds(least), seconds(option.area), words


def _elsewhere(sequence: int, found: Sequence[Compared]) -> Iterator[tuple[str, str]]:
    from fourfold.ir.batch import spans

    for one in found:
        if one.batch is None:
            yield one.policy, one.refused
            continue
        own = [piece for piece in one.batch.pieces if piece.sequence == sequence]
        ranks, many = own[0].ranks, f" in {len(own)} chunks" if len(own) > 1 else ""
        steps = spans(sorted({piece.micro_step for piece in own}))
        yield one.policy, f"{own[0].method} on {spans(ranks)}{many}, micro-step{'s' * (len(own) > 1)} {steps}"


def as_data(told: Explained) -> Mapping[str, object]:
    """The same as JSON values."""
    return {
        "sequence": told.sequence,
        "length": told.length,
        "policy": told.policy,
        "zone": told.zones.of(told.length),
        "runs": [asdict(run) for run in told.runs],
        "options": [
            {"ranks": one.ranks, "tokens": one.tokens, "room": one.room, "seconds": dict(one.seconds)}
            for one in told.options
        ],
    }
