"""`fourfold demo`: plan a large model for a large machine, then train a small one here, twice, and compare."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from fourfold.compiler.cli import options
from fourfold.compiler.cli.asking import Question, model_of
from fourfold.compiler.cli.job import Job
from fourfold.compiler.cli.launching import folder_of
from fourfold.compiler.cli.machines import measured
from fourfold.compiler.cli.planning import answered, as_data
from fourfold.compiler.cli.render import dump, show
from fourfold.compiler.cli.running import planned, trained
from fourfold.ir.text import Section, count, seconds

LARGE = Question("llama-8b", "dgx-h200", length="8k", tokens="512k")
SMALL: Mapping[str, int | float | bool | str] = {
    "vocabulary": 256,
    "width": 128,
    "layers": 2,
    "heads": 4,
    "kv_heads": 2,
    "feed_forward": 256,
}
RANKS, LENGTH, TOKENS, RATE = 4, 64, 2048, 8e-3
PROMPT = "The "


def demo(
    steps: Annotated[int, typer.Option("--steps", min=20, help="Steps of each of the two runs.")] = 120,
    runs: Annotated[str | None, typer.Option("--runs", metavar="DIR", help="Keep the runs here.")] = None,
    hardware: Annotated[str, typer.Option("--hardware", help="This machine; measured if not said.")] = "detect",
    as_json: options.Json = False,
) -> None:
    """Plan llama-8b for eight H200s, then train a small Llama on 4 processes here under two plans. Three minutes."""
    started = time.perf_counter()
    large = answered(LARGE, top=3, quiet=as_json)
    if not as_json:
        show(large.sections())
        print("\nNow on this machine: a small Llama over 4 processes.\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="fourfold-demo-") as scratch:
        results = small(Path(runs or scratch), steps, hardware, quiet=as_json)
    report = {**results, "llama-8b": as_data(large), "seconds": time.perf_counter() - started}
    if as_json:
        dump(report)
        return
    show(sections(report))


def small(runs: Path, steps: int, hardware: str, *, quiet: bool) -> dict[str, Any]:
    """Measures the machine, then trains under the planner's own choice and another plan."""
    from fourfold.compiler.corpus import read_corpus
    from fourfold.hardware import load

    corpus = read_corpus("pydoc", length=LENGTH)
    workload = corpus.workload(tokens=TOKENS)
    at = time.perf_counter()
    machine = measured(RANKS) if hardware == "detect" else load(hardware)
    how = "measured" if hardware == "detect" else f"taken as {hardware}"
    device = f"{machine.ranks} x {machine.device.name}"
    told(f"this machine, {how} in {seconds(time.perf_counter() - at)}: {device}", quiet=quiet)
    told(
        f"text: {corpus.name}, entropy {corpus.unigram:.2f} nats a byte, {corpus.bigram:.2f} after another", quiet=quiet
    )
    found: list[dict[str, Any]] = []
    for title in ("own choice", "pinned"):
        pins = pinned(found[0]["plan"]) if found else {}
        answer = planned(model_of(LARGE.model, SMALL), workload, machine, pins=pins, word="fp32")
        told(f"\n{title}: {answer.plan.mesh}, predicted {seconds(answer.estimate.step)} a step", quiet=quiet)
        job = Job(
            model=LARGE.model,
            overrides=SMALL,
            data="pydoc",
            length=LENGTH,
            steps=steps,
            tokens=TOKENS,
            rate=RATE,
            seed=0,
            predicted=answer.estimate.step,
            sample=PROMPT,
        )
        folder = folder_of(str(runs), title.replace(" ", "-"))
        found.append({"title": title, **trained(folder, job, answer.plan, quiet=quiet)})
    return {
        "schema": "fourfold.demo/1",
        "machine": str(machine),
        "unigram": corpus.unigram,
        "bigram": corpus.bigram,
        "runs": found,
    }


def pinned(own: str) -> dict[str, str | int]:
    """The other plan: dp2 x tp2, or plain data parallel where that is the planner's own choice."""
    return {"dp": RANKS} if own == "dp2 x tp2" else {"dp": 2, "tp": 2}


def told(text: str, *, quiet: bool) -> None:
    """Prints, unless JSON is to come."""
    if not quiet:
        print(text, flush=True)


def sections(report: Mapping[str, Any]) -> tuple[Section, ...]:
    """Predicted against measured, the loss against the text's own entropies, and the sample."""
    runs = report["runs"]
    rows = [("", "plan", "predicted", "measured", "tokens/s", "loss, first and last")]
    for run in runs:
        losses = f"{run['first']:.2f} -> {run['last']:.2f}"
        plan = f"{run['plan']}, ZeRO {run['zero']}"
        times = seconds(run["predicted"]), seconds(run["seconds"])
        rows.append((run["title"], plan, *times, count(run["tokens_per_second"]), losses))
    orders = [" < ".join(r["plan"] for r in sorted(runs, key=lambda r: r[key])) for key in ("predicted", "seconds")]
    last = max(run["last"] for run in runs)
    names = {"bigram": "a byte after another", "unigram": "a byte alone"}
    below = next(
        (f"below {report[k]:.2f}, the entropy of {what}" for k, what in names.items() if last < report[k]), None
    )
    notes = [
        ("fastest first", f"predicted {orders[0]}; measured {orders[1]}"),
        ("loss", f"mean of the last ten {last:.2f} nats a byte, {below or 'above the entropy of a byte alone'}"),
        ("sample", " ".join(runs[0]["sample"].split())),
        ("took", seconds(report["seconds"])),
    ]
    return Section("Two plans, one model, one text", tuple(rows), "lllrrl"), Section("What it shows", tuple(notes))
