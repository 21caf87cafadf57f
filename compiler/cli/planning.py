"""`fourfold plan | show | why | diff`: decide, and read what was decided."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fourfold.compiler.cli import options
from fourfold.compiler.cli.asking import Question, asked, model_of
from fourfold.compiler.cli.render import dump, say, show
from fourfold.hardware.errors import UsageError

if TYPE_CHECKING:
    from fourfold.ir.answer import Answer
    from fourfold.ir.plan import Plan


def plan(
    model: options.Model,
    hardware: options.Hardware = None,
    length: options.Length = None,
    lengths: options.Lengths = None,
    tokens_per_step: options.Tokens = None,
    pin: options.Pins = None,
    optimizer: options.Optimizer = None,
    precision: options.Precision = None,
    override: options.Overrides = None,
    top: Annotated[int, typer.Option("--top", min=0, help="How many next-best plans to show.")] = 3,
    save: Annotated[str | None, typer.Option("--save", metavar="FILE", help="Keep the plan as JSON.")] = None,
    as_json: options.Json = False,
) -> None:
    """Decide how to train MODEL on a machine, and say what it should cost. Needs no GPU."""
    question = Question(
        model, hardware, length, lengths, tokens_per_step, optimizer, precision, pin or (), override or ()
    )
    answer = answered(question, top=top, quiet=as_json)
    if save is not None:
        answer.plan.save(save)
    if as_json:
        dump(as_data(answer))
        return
    show(answer.sections())
    if save is not None:
        say(f"saved {save}; look into it with: fourfold why {save}")


def answered(question: Question, *, top: int, quiet: bool) -> Answer:
    """Plans; what was assumed is printed first, before the work."""
    found = asked(question)
    if not quiet:
        assumed = question.assumed(found.word)
        show([assumed] if assumed.rows else [])
        print()
    from fourfold.compiler import api

    return api.plan(
        model_of(question.model, found.overrides),
        found.workload,
        hardware=found.machine,
        optimizer=found.optimizer,
        precision=found.precision,
        pins=found.pins,
        top=top,
    )


def show_plan(file: options.PlanFile, as_json: options.Json = False) -> None:
    """Show a saved plan, priced anew; neither the model nor the machine's profile is read."""
    from fourfold.ir.answer import Answer

    read = saved(file)
    answer = Answer(read, priced(read))
    if as_json:
        dump(as_data(answer))
        return
    show(answer.sections())


def why(
    file: options.PlanFile,
    pattern: Annotated[str, typer.Argument(metavar="[GLOB]", help="A decision or modules: layers.*.attention.*")] = "*",
    as_json: options.Json = False,
) -> None:
    """Say what was decided, over what, and what the others would have cost."""
    from fourfold.ir import report
    from fourfold.ir.serial import to_plain

    read = saved(file)
    sections = report.why(read, pattern)
    if not sections:
        names = ", ".join(dict.fromkeys((*(d.about for d in read.log), *read.graph.blocks)))
        raise UsageError(f"{pattern!r} is no decision and no module of {file}; it has {names or 'none'}")
    if as_json:
        rows = {section.title: [list(row) for row in section.rows] for section in sections}
        dump({"decisions": to_plain(report.decisions(read, pattern)), "sections": rows})
        return
    show(sections)


def diff(
    first: Annotated[str, typer.Argument(metavar="A", help="A saved plan.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another one.")],
    as_json: options.Json = False,
) -> None:
    """Say in what two saved plans differ, and what that does to time and memory."""
    from fourfold.ir.report import difference

    plans = saved(first), saved(second)
    rows = difference(plans, tuple(priced(one) for one in plans))
    if as_json:
        dump([{"what": what, "a": one, "b": other} for what, one, other in rows])
        return
    from fourfold.ir.text import Section

    show([Section(f"{first} -> {second}", tuple(rows), "lll")])


def saved(file: str) -> Plan:
    """The plan in a file, which must hold together. Raises UsageError."""
    from fourfold.ir.plan import Plan

    found = Plan.load(file)
    # The check knows the sequence methods, which load torch: a file that is no plan is told before.
    from fourfold.ir.verify import sound

    return sound(found, file)


def priced(plan: Plan) -> Any:
    """The estimate of a plan, from the machine it carries."""
    from fourfold.passes.price.price import price

    return price(plan)


def as_data(answer: Answer) -> Mapping[str, object]:
    """An answer as JSON values: seconds, bytes and tokens; the whole plan is what --save writes."""
    from fourfold.ir.report import fields, settings

    return {
        "schema": "fourfold.answer/1",
        "plan": {**fields(answer.plan.graph), **settings(answer.plan)},
        "estimate": estimate_data(answer.estimate),
        "next_best": [{**settings(c.plan), "estimate": estimate_data(c.estimate)} for c in answer.next_best],
        "refused": [
            {"mesh": r.mesh, "reason": r.reason, "repairs": [{"change": t, "step": s} for t, s in r.repairs]}
            for r in answer.refused
        ],
        "pins": {name: {"value": answer.plan.pins[name], "cost": cost} for name, cost in answer.pins.items()},
        "notes": list(answer.plan.graph.notes),
        "solving": answer.solving,
    }


def estimate_data(estimate: Any) -> Mapping[str, object]:
    """An estimate as JSON values."""
    low, high = estimate.peak
    return {
        "step": estimate.step,
        "parts": dict(estimate.parts),
        "memory": {name: {"low": a, "high": b} for name, (a, b) in estimate.memory.items()},
        "peak": {"low": low, "high": high},
        "limit": estimate.limit,
        "flops": estimate.flops,
        "mfu": estimate.mfu,
        "tokens": estimate.tokens,
        "tokens_per_second": estimate.tokens_per_second,
        "ranks": estimate.ranks,
    }
