"""`fourfold simulate`: the timeline of one step, as text, as a trace, as a picture; a measured step beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from fourfold.compiler.cli import options, picture
from fourfold.compiler.cli.asking import Question
from fourfold.compiler.cli.planning import answered, saved
from fourfold.compiler.cli.render import dump, say, show
from fourfold.hardware.errors import RunError, UsageError
from fourfold.ir import profiled
from fourfold.ir.text import Section, percent, seconds

if TYPE_CHECKING:
    from fourfold.ir.chart import Chart
    from fourfold.ir.plan import Plan
    from fourfold.passes.price.charting import Simulated

WIDEST = 160
ALIKE = 1.01
"""Ratio up to which the timeline of all micro-steps and the price agree."""


def simulate(
    model: Annotated[str, typer.Argument(metavar="PLAN|MODEL", help="A plan of `plan --save`; or a model to plan.")],
    hardware: options.Hardware = None,
    length: options.Length = None,
    lengths: options.Lengths = None,
    tokens_per_step: options.Tokens = None,
    pin: options.Pins = None,
    optimizer: options.Optimizer = None,
    precision: options.Precision = None,
    override: options.Overrides = None,
    whole: Annotated[bool, typer.Option("--whole", help="Draw every micro-step, not only until they repeat.")] = False,
    trace: Annotated[str | None, typer.Option("--trace", metavar="FILE", help="Write a trace for Perfetto.")] = None,
    svg: Annotated[str | None, typer.Option("--svg", metavar="FILE", help="Draw it as SVG.")] = None,
    png: Annotated[str | None, typer.Option("--png", metavar="FILE", help="Draw it as PNG; needs matplotlib.")] = None,
    measured: Annotated[
        list[str] | None,
        typer.Option("--measured", metavar="FILE", help="A trace of torch's profiler, drawn beside. Repeatable."),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Draw the timeline of one step: what each place computes and sends, and when. Needs no GPU."""
    question = Question(
        model, hardware, length, lengths, tokens_per_step, optimizer, precision, pin or (), override or ()
    )
    if png is not None:
        picture.check()
    # Read first: a mistake in it is told before the planner's work.
    beside = (profiled.measured(measured),) if measured else ()
    plan = _plan(question, quiet=as_json)
    from fourfold.passes.price.charting import simulated

    found = simulated(plan, whole=whole or bool(beside))
    charts = (found.chart, *beside)
    write(charts, trace=trace, svg=svg, png=png)
    if as_json:
        dump(as_data(found, charts))
        return
    _print(plan, found, charts)
    for path in filter(None, (trace, svg, png)):
        say(f"wrote {path}")


def write(charts: Sequence[Chart], *, trace: str | None, svg: str | None, png: str | None) -> None:
    """The files asked for. Raises RunError where one cannot be written."""
    from fourfold.ir import chart, drawing

    made: tuple[tuple[str | None, Callable[[str], object]], ...] = (
        (trace, lambda path: Path(path).write_text(json.dumps(chart.trace(charts)), encoding="utf-8")),
        (svg, lambda path: Path(path).write_text(drawing.svg(charts), encoding="utf-8")),
        (png, lambda path: picture.png(charts, path)),
    )
    for path, write in made:
        if path is None:
            continue
        try:
            write(path)
        except OSError as error:
            raise RunError(f"{path} cannot be written: {error.strerror or error}") from None


def _plan(question: Question, *, quiet: bool) -> Plan:
    """The saved plan, or a new one. Raises UsageError where both are asked for."""
    if not is_plan(question.model, planned=question.hardware is not None):
        return answered(question, top=0, quiet=quiet).plan
    said = [question.hardware, question.length, question.lengths, question.tokens, question.optimizer]
    if any(word is not None for word in (*said, question.precision)) or question.pins or question.overrides:
        raise UsageError(f"{question.model} is a plan and says it all; leave the other options of `plan` away")
    return saved(question.model)


def is_plan(name: str, *, planned: bool) -> bool:
    """Whether a name is that of a saved plan: a JSON file, with no machine to plan for, or one that holds a graph."""
    if not name.endswith(".json"):
        return False
    if not planned:
        return True
    try:
        found = json.loads(Path(name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and "graph" in found


def _print(plan: Plan, found: Simulated, charts: Sequence[Chart]) -> None:
    from fourfold.ir.gantt import text
    from fourfold.ir.report import headline

    show([Section(f"{headline(plan)}: {seconds(found.step)} a step", tuple(_figures(plan, found, charts[1:])))])
    print()
    print("\n".join(text(charts, min(WIDEST, Console().width))))


def _figures(plan: Plan, found: Simulated, beside: Sequence[Chart]) -> Iterator[tuple[str, str]]:
    """What the drawing shows and what it leaves away, and the figures of the whole step."""
    each = plan.mesh.ranks // plan.mesh.pp
    if plan.mesh.pp > 1:
        yield "places", f"{plan.mesh.pp} of {each} ranks each, schedule {plan.schedule}"
        yield "bubble", f"{percent(found.bubble)} of the places' time, the optimizer's aside"
        kept = " ".join(f"{held:g}" for held in found.in_flight)
        yield "in flight", f"at most {kept} micro-steps on the places in order"
    else:
        yield "ranks", "1" if each == 1 else f"{each}, all alike: one is drawn"
    yield "exposed", exposed(found.exposed, found.step)
    if found.repeated:
        more = f"{found.repeated} more like the middle ones, {seconds(found.period)} each"
        yield "drawn", f"{found.drawn} of {found.drawn + found.repeated} micro-steps; {more}"
    elif found.chart.seconds > found.step * ALIKE or found.step > found.chart.seconds * ALIKE:
        yield "drawn", f"all micro-steps: {seconds(found.chart.seconds)}; the price lets those in the middle repeat"
    for chart in beside:
        yield "measured", f"{seconds(chart.seconds)} a step, {chart.seconds / found.step:.2f} times the predicted one"
        yield "", exposed(max(map(chart.exposed, chart.ranks)), chart.seconds)


def exposed(alone: float, step: float) -> str:
    """Communication that nothing hides, and its share of the step."""
    if not alone:
        return "no communication that nothing hides"
    return f"{seconds(alone)} of communication that nothing hides, {percent(alone / step)} of the step"


def as_data(found: Simulated, charts: Sequence[Chart]) -> Mapping[str, object]:
    """The step as JSON values, in seconds."""
    return {
        "schema": "fourfold.timeline/1",
        "step": found.step,
        "bubble": found.bubble,
        "in_flight": list(found.in_flight),
        "exposed": found.exposed,
        "micro_steps": {"drawn": found.drawn, "repeated": found.repeated, "period": found.period},
        "measured": [{"step": chart.seconds, "exposed": max(map(chart.exposed, chart.ranks))} for chart in charts[1:]],
        "charts": [
            {"title": chart.title, "seconds": chart.seconds, "bars": [asdict(bar) for bar in chart.bars]}
            for chart in charts
        ],
    }
