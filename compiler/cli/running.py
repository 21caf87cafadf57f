"""`fourfold run | verify | demo`: train on this machine, prove a plan against the plain module, and show both."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fourfold.compiler.cli import options, values
from fourfold.compiler.cli.asking import model_of, precision, usual
from fourfold.compiler.cli.job import Job
from fourfold.compiler.cli.launching import folder_of, launched
from fourfold.compiler.cli.machines import machine_of
from fourfold.compiler.cli.planning import priced, saved
from fourfold.compiler.cli.render import dump, show
from fourfold.compiler.cli.watching import progress
from fourfold.hardware.errors import RunError, UsageError
from fourfold.ir.text import Section, count, seconds, size

if TYPE_CHECKING:
    from torch import nn

    from fourfold.ir.answer import Answer
    from fourfold.ir.plan import Plan
    from fourfold.ir.workload import Workload


@dataclass(frozen=True, slots=True)
class Wish:
    """What was said about how to run; None where nothing was."""

    hardware: str | None
    processes: int | None
    pins: tuple[str, ...]
    numbers: str | None


def run(
    model: options.Model,
    hardware: options.Hardware = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Optimizer steps.")] = 100,
    batch_tokens: Annotated[str, typer.Option("--batch-tokens", metavar="N", help="Tokens of one step.")] = "4k",
    length: Annotated[str, typer.Option("--length", metavar="N", help="Longest window of the data.")] = "128",
    data: Annotated[str, typer.Option("--data", metavar="FILE", help="Text, .jsonl, a folder, or pydoc.")] = "pydoc",
    plan: Annotated[str | None, typer.Option("--plan", metavar="FILE", help="Run this plan.")] = None,
    processes: Annotated[int | None, typer.Option("--nproc", min=1, help="Processes: the machine's ranks.")] = None,
    policy: Annotated[str, typer.Option("--policy", metavar="NAME", help="Place each batch by it: auto, ...")] = "",
    pin: options.Pins = None,
    override: options.Overrides = None,
    numbers: options.Precision = None,
    rate: Annotated[float, typer.Option("--lr", help="Peak learning rate of AdamW.")] = 3e-3,
    seed: Annotated[int, typer.Option("--seed", help="Of the weights and the order of the data.")] = 0,
    sample: Annotated[str, typer.Option("--sample", metavar="TEXT", help="Continue this text afterwards.")] = "",
    save: Annotated[bool, typer.Option("--save", help="Write a checkpoint at the end.")] = False,
    every: Annotated[int, typer.Option("--save-every", min=0, help="And one after so many steps.")] = 0,
    resume: Annotated[str, typer.Option("--resume", metavar="DIR", help="Go on from a checkpoint.")] = "",
    runs: Annotated[str, typer.Option("--runs", metavar="DIR", help="Where runs are kept.")] = "runs",
    name: Annotated[str | None, typer.Option("--name", help="The run's folder in it.")] = None,
    as_json: options.Json = False,
) -> None:
    """Train MODEL on this machine through torchrun; each step is a line of runs/NAME/metrics.jsonl."""
    from fourfold.compiler.corpus import read_corpus

    _refuse(rate, policy)
    tokens, window = values.tokens(batch_tokens, "--batch-tokens"), values.tokens(length, "--length")
    changed, corpus = values.pairs(override or (), "--set"), read_corpus(data, length=window)
    module = model_of(model, changed)
    workload = corpus.workload(tokens=tokens, seed=seed)
    chosen = _chosen(plan, module, workload, Wish(hardware, processes, tuple(pin or ()), numbers))
    job = Job(
        model=model,
        data=data,
        length=window,
        steps=steps,
        tokens=tokens,
        rate=rate,
        seed=seed,
        predicted=expected(chosen, workload),
        overrides=changed,
        sample=sample,
        keep=save or every > 0,
        every=every,
        resume=resume,
        policy=policy,
    )
    report = trained(folder_of(runs, name or _label(model)), job, chosen, quiet=as_json)
    dump(report) if as_json else show([section(report)])


def _label(model: str) -> str:
    """The name of a run that was given none."""
    return f"{Path(model.partition(':')[0]).stem}-{time.strftime('%Y%m%d-%H%M%S')}"


def _chosen(file: str | None, module: nn.Module, workload: Workload, wish: Wish) -> Plan:
    """The plan in a file, or the planner's."""
    return _given(file, module, wish) if file else _decided(module, workload, wish)


def _refuse(rate: float, policy: str) -> None:
    """Raises UsageError for what no run can be started with: torchrun around it, a learning rate or policy that is
    none."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise UsageError("`fourfold run` starts torchrun by itself: leave torchrun away, and say --nproc")
    if not 0.0 < rate < float("inf"):
        raise UsageError(f"--lr {rate:g} is no learning rate: give a number above 0")
    if policy:
        from fourfold.compiler.online.choosing import named

        named(policy)


def trained(folder: Path, job: Job, plan: Plan, *, quiet: bool = False) -> dict[str, Any]:
    """Runs the job in its folder, and its figures; the sample's text too."""
    plan.save(folder / "plan.json")
    job.write(folder)
    with progress(job, quiet=quiet) as tell:
        rows = launched(folder, job, ranks=plan.mesh.ranks, tell=tell)
    sample = folder / "sample.txt"
    return {
        "schema": "fourfold.summary/1",
        "folder": str(folder),
        "plan": str(plan.mesh),
        "zero": plan.zero,
        **summary(rows),
        "sample": sample.read_text() if sample.exists() else None,
    }


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the rows of a run came to."""
    from fourfold.compiler.training import Row, summary

    return asdict(summary([Row(**row) for row in rows]))


def section(report: Mapping[str, Any]) -> Section:
    """The figures of a run as text."""
    predicted = report["predicted"]
    ratio = f", predicted {seconds(predicted)} ({predicted / report['seconds']:.2f} of it)" if predicted else ""
    rows = [
        ("loss", f"{report['first']:.3f} at first, {report['last']:.3f} over the last ten of {report['steps']} steps"),
        ("step", f"{seconds(report['seconds'])} measured{ratio}"),
        ("tokens/s", count(report["tokens_per_second"])),
        ("compiled", f"{report['compiled']} graphs"),
    ]
    if report["peak"]:
        rows.append(("memory", f"{size(report['peak'])} at most on rank 0"))
    if report["sample"]:
        rows.append(("sample", " ".join(report["sample"].split())))
    rows.append(("kept in", report["folder"]))
    return Section(f"Trained on {report['plan']}", tuple(rows))


def expected(plan: Plan, workload: Workload) -> float:
    """The seconds a step over this workload should take, dealt as the plan's micro-steps hold it."""
    from fourfold.backends.batch.batching import dealt

    lengths = [length for length, many in workload.lengths for _ in range(many)]
    micro_steps = len(dealt(lengths, ranks=plan.mesh.pool, capacity=plan.capacity)[0])
    return float(priced(replace(plan, workload=workload, micro_steps=micro_steps)).step)


def planned(model: Any, workload: Any, machine: Any, *, pins: Mapping[str, str | int], word: str | None) -> Answer:
    """The planner's answer, in bf16 where that is the faster."""
    from fourfold.compiler import api

    numbers = precision(word or usual(machine))
    return api.plan(model, workload, hardware=machine, precision=numbers, pins=pins, top=0)


def _decided(module: nn.Module, workload: Workload, wish: Wish) -> Plan:
    """What the planner takes for the machine wished for."""
    machine = machine_of(wish.hardware, wish.processes)
    return _agreed(planned(module, workload, machine, pins=values.pins(wish.pins), word=wish.numbers).plan, wish)


def _given(file: str, module: nn.Module, wish: Wish) -> Plan:
    """The plan in a file, made for this model. Raises UsageError when more is wished for than it says."""
    if wish.hardware or wish.pins or wish.numbers:
        raise UsageError("--plan says it all: leave --hardware, --pin and --precision away")
    from fourfold.compiler import api

    chosen = saved(file)
    api.graph_for(module, chosen)
    return _agreed(chosen, wish)


def _agreed(plan: Plan, wish: Wish) -> Plan:
    """The plan. Raises RunError when --nproc is not what it needs."""
    ranks = plan.mesh.ranks
    if wish.processes not in (None, ranks):
        raise RunError(
            f"the plan needs {ranks} processes ({plan.mesh}) and --nproc says {wish.processes}: say --nproc {ranks}, "
            f"or plan for a machine of {wish.processes} ranks"
        )
    return plan
