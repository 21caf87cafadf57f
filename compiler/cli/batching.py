"""`fourfold batch`: where the sequences of one batch would run, by every policy, and what each would cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from fourfold.compiler.cli import options
from fourfold.compiler.cli.asking import Question
from fourfold.compiler.cli.planning import answered
from fourfold.compiler.cli.render import dump, say, show
from fourfold.hardware.errors import InfeasibleError, UsageError
from fourfold.ir.text import Section, percent, seconds

if TYPE_CHECKING:
    from fourfold.ir.batch import BatchPlan
    from fourfold.ir.plan import Plan
    from fourfold.passes.batch.compare import Compared
    from fourfold.passes.batch.terms import Terms

LONGEST = 8
"""Sequences whose places are listed unasked."""


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
    explain: Annotated[int | None, typer.Option("--explain", metavar="N", help="Say where sequence N runs.")] = None,
    save: Annotated[str | None, typer.Option("--save", metavar="FILE", help="Keep the fastest placement.")] = None,
    as_json: options.Json = False,
) -> None:
    """Place one batch of sequences on a machine by every policy, and compare them. Needs no GPU."""
    question = Question(
        model, hardware, None, lengths, tokens_per_step, optimizer, precision, pin or (), override or ()
    )
    plan = answered(question, top=0, quiet=as_json).plan
    from fourfold.passes.batch import POLICIES
    from fourfold.passes.batch.compare import compared
    from fourfold.passes.batch.planned import terms_of

    terms = terms_of(plan)
    each = [length for length, count in plan.workload.lengths for _ in range(count)]
    found = compared(each, terms, tuple(policy or POLICIES), watch=lambda name: None)
    best = found[0].batch
    if best is None:
        raise InfeasibleError(found[0].refused)
    if explain is not None and not 0 <= explain < len(each):
        raise UsageError(f"--explain {explain}: the batch has sequences 0 to {len(each) - 1}")
    if save is not None:
        best.save(save)
    if as_json:
        dump(as_data(plan, found))
        return
    chosen = _explained(best, terms, explain) if explain is not None else _longest(best)
    show([_given(plan), _table(found), *_refused(found), chosen])
    if save is not None:
        say(f"saved {save}")


def _given(plan: Plan) -> Section:
    """The batch, and the static plan it is placed under."""
    from fourfold.ir.report import headline

    rows = (("batch", str(plan.workload)), ("plan", headline(plan)), ("room", f"{plan.capacity:,} tokens a rank"))
    return Section("Placed", rows)


def _table(found: Sequence[Compared]) -> Section:
    rows = [("", "step", "to bound", "balance", "micro-steps", "fullest", "solving")]
    for one in found:
        if one.batch is None or one.timing is None:
            continue
        time, fullest = one.timing, max(one.batch.held.values())
        steps = str(one.batch.micro_steps)
        figures = (seconds(time.seconds), f"+{percent(time.gap)}", percent(time.balance), steps, f"{fullest:,}")
        rows.append((one.policy, *figures, seconds(one.solving)))
    return Section("Policies, the fastest first; no placement is faster than the bound", tuple(rows), "lrrrrrr")


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
    rows = [("sequences", spread)]
    rows += [
        (f"{piece.tokens:,}", f"micro-step {piece.micro_step}, {piece.method} on {spans(piece.ranks)}")
        for piece in order
    ]
    return Section(f"The fastest, {batch.policy}: its longest sequences, by tokens", tuple(rows), "rl")


def _explained(batch: BatchPlan, terms: Terms, sequence: int) -> Section:
    """Where one sequence runs, and what it would take on other numbers of ranks."""
    from fourfold.ir.batch import spans
    from fourfold.passes.batch.bounding import worth

    length = batch.lengths[sequence]
    rows = [
        ("runs", f"{piece} in micro-step {piece.micro_step}, {piece.method} on ranks {spans(piece.ranks)}")
        for piece in batch.pieces
        if piece.sequence == sequence
    ]
    for n in worth(length, terms):
        each, method = terms.task(length, n), terms.fastest(length, n)[1]
        rows.append((f"on {n}", f"{method}, {seconds(each)} each, {seconds(n * each)} of all ranks"))
    return Section(f"Sequence {sequence}, {length:,} tokens, by {batch.policy}", tuple(rows))


def as_data(plan: Plan, found: Sequence[Compared]) -> Mapping[str, object]:
    """The comparison as JSON values: seconds and tokens."""
    from fourfold.ir.report import settings

    rows = []
    for one in found:
        row: dict[str, object] = {"policy": one.policy, "solving": one.solving}
        if one.batch is None or one.timing is None:
            row["refused"] = one.refused
        else:
            row |= {"step": one.timing.seconds, "bound": one.timing.bound, "gap": one.timing.gap}
            row |= {"balance": one.timing.balance, "micro_steps": one.batch.micro_steps}
            row |= {"fullest": max(one.batch.held.values()), "pieces": len(one.batch.pieces)}
        rows.append(row)
    workload = {"sequences": plan.workload.sequences, "tokens": plan.workload.tokens, "longest": plan.workload.longest}
    return {"schema": "fourfold.policies/1", "workload": workload, "plan": settings(plan), "policies": rows}
