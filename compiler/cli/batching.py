"""`fourfold batch`: where the sequences of one batch would run, by every policy, and what each would cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.padding import Padding

from fourfold.compiler.cli import explaining, options, picture, policies
from fourfold.compiler.cli.asking import Question
from fourfold.compiler.cli.planning import answered
from fourfold.compiler.cli.render import WIDEST, dump, say, show
from fourfold.compiler.cli.simulating import write
from fourfold.hardware.errors import InfeasibleError, UsageError
from fourfold.ir.text import Section

if TYPE_CHECKING:
    from fourfold.ir.batch import BatchPlan
    from fourfold.ir.plan import Plan
    from fourfold.passes.batch.showing.compare import Compared
    from fourfold.passes.batch.timing.terms import Terms

LONGEST = 4
"""Sequences whose places are listed unasked."""
HIGHEST = 64
"""Rows of a placement in a picture."""


def batch(
    lengths: Annotated[str, typer.Argument(metavar="NAME|FILE", help="A shipped list, such as wikipedia; or a file.")],
    model: Annotated[str, typer.Option("--model", metavar="MODEL", help="As for `plan`.")],
    hardware: options.Hardware = None,
    tokens_per_step: options.Tokens = None,
    policy: Annotated[
        list[str] | None, typer.Option("--policy", metavar="NAME", help="Only this one. Repeatable.")
    ] = None,
    pin: options.Pins = None,
    optimizer: options.Optimizer = None,
    precision: options.Precision = None,
    override: options.Overrides = None,
    explain: Annotated[
        int | None, typer.Option("--explain", metavar="SEQUENCE", help="Say why sequence 0, 1, .. runs where it does.")
    ] = None,
    save: Annotated[str | None, typer.Option("--save", metavar="FILE", help="Keep the fastest placement.")] = None,
    svg: Annotated[str | None, typer.Option("--svg", metavar="FILE", help="Draw the fastest placement.")] = None,
    png: Annotated[str | None, typer.Option("--png", metavar="FILE", help="The same as PNG; needs matplotlib.")] = None,
    as_json: options.Json = False,
) -> None:
    """Place one batch of sequences on a machine by every policy, and compare them. Needs no GPU."""
    question = Question(
        model, hardware, None, lengths, tokens_per_step, optimizer, precision, pin or (), override or ()
    )
    if png is not None:
        picture.check()
    plan = answered(question, top=0, quiet=as_json).plan
    found, terms = _placed(plan, policy or (), explain=explain)
    best = found[0].batch
    if best is None:
        raise InfeasibleError(found[0].refused)
    _write(best, terms, save=save, svg=svg, png=png)
    if as_json:
        _dump(plan, found, terms, explain=explain)
    else:
        _print(plan, found, terms, explain=explain)
    for path in filter(None, (save, svg, png)):
        say(f"wrote {path}")


def _placed(plan: Plan, names: Sequence[str], *, explain: int | None) -> tuple[Sequence[Compared], Terms]:
    """The batch of the plan's workload by each policy. Raises UsageError for a sequence that there is not."""
    from fourfold.passes.batch import POLICIES
    from fourfold.passes.batch.showing.compare import compared
    from fourfold.passes.batch.timing.planned import terms_of

    each = [length for length, count in plan.workload.lengths for _ in range(count)]
    if explain is not None and not 0 <= explain < len(each):
        raise UsageError(f"--explain {explain}: the batch has sequences 0 to {len(each) - 1}")
    terms = terms_of(plan)
    return compared(each, terms, tuple(names or POLICIES), watch=lambda name: None), terms


def _write(best: BatchPlan, terms: Terms, *, save: str | None, svg: str | None, png: str | None) -> None:
    if save is not None:
        best.save(save)
    if svg is not None or png is not None:
        from fourfold.ir.coarse import coarse
        from fourfold.passes.batch.showing.charting import charted

        write([coarse(charted(best, terms), HIGHEST)], trace=None, svg=svg, png=png)


def _dump(plan: Plan, found: Sequence[Compared], terms: Terms, *, explain: int | None) -> None:
    from fourfold.passes.batch.showing.explain import explained

    data = policies.as_data(plan, found, terms)
    best = found[0].batch
    assert best is not None
    told = {} if explain is None else {"explained": explaining.as_data(explained(best, terms, explain))}
    dump({**data, **told})


def _print(plan: Plan, found: Sequence[Compared], terms: Terms, *, explain: int | None) -> None:
    from fourfold.passes.batch.showing.charting import charted
    from fourfold.passes.batch.showing.explain import explained

    best = found[0].batch
    assert best is not None
    console = Console(highlight=False, soft_wrap=True)
    width = min(WIDEST, console.width)
    show([_given(plan, policies.bound(found, terms))])
    console.print()
    console.print(policies.TITLE, style="bold")
    console.print(Padding(policies.table(found, terms), (0, 0, 0, 1), expand=False), width=width)
    show([Section("", (("", policies.SENT),), "rl"), *_refused(found)])
    console.print()
    if explain is not None:
        show(explaining.sections(explained(best, terms, explain), found))
        return
    console.print(f"The fastest, {best.policy}: ranks over time, by sequence:tokens", style="bold")
    for line in policies.painted(charted(best, terms), width):
        console.print(line)
    console.print()
    show([_longest(best)])


def _given(plan: Plan, bound: str) -> Section:
    """The batch, the static plan it is placed under, and what no placement is faster than."""
    from fourfold.ir.report import headline

    rows = (("batch", str(plan.workload)), ("plan", headline(plan)), ("room", f"{plan.capacity:,} tokens a rank"))
    return Section("Placed", (*rows, ("bound", bound)))


def _refused(found: Sequence[Compared]) -> Iterator[Section]:
    rows = tuple((one.policy, one.refused) for one in found if one.batch is None)
    if rows:
        yield Section("Cannot", rows)


def _longest(batch: BatchPlan) -> Section:
    """How many ranks sequences got, and where the longest run."""
    from fourfold.ir.batch import spans

    counts = Counter(len(piece.ranks) for piece in batch.pieces)
    spread = ", ".join(f"{many:,} on {n} rank{'s' * (n > 1)}" for n, many in sorted(counts.items()))
    order = sorted(batch.pieces, key=lambda piece: -piece.tokens)[:LONGEST]
    rows = [("pieces", spread)]
    rows += [
        (f"{piece.tokens:,}", f"{piece} in micro-step {piece.micro_step}, {piece.method} on {spans(piece.ranks)}")
        for piece in order
    ]
    return Section("Its longest pieces, by tokens", tuple(rows), "rl")
