"""Predicted against published seconds of a step: each run of benchmarks/data/published_runs.csv under its own layout.

    PYTHONPATH=src python benchmarks/validate.py [--source megatron-sc21 ...] [--rows ID ...] [--unpinned]

One number is fitted for each device and precision that a run of the ten weak-scaling rows of megatron-sc21 used: by how
much its products are slower than its profile says. It multiplies the rate of matrix products, and of attention's, and
nothing else: not the memory's, not the links'. All else is as in any plan. Beside each row: what a constant
throughput would say, the same FLOP/s a GPU (replays counted) for the source, fitted on those ten rows for megatron-sc21
and on all of them for other sources. `--unpinned` plans freely too, and tells where a gain above 15 % comes from.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp, log
from statistics import fmean, median

from published import Run, asked, machine_of, pinned, runs

from fourfold.compiler.pipeline import Planner
from fourfold.ir.estimate import Estimate

SOURCE, FITTED = "megatron-sc21", "weak-scaling"
REPLAYED = 4 / 3
"""FLOPs of a step that does its forward twice, of one that does not."""
GAIN = 0.15
"""Share of the published layout's step from which a better one must say why."""

Fits = Mapping[tuple[str, str], float]


@dataclass(frozen=True, slots=True)
class Row:
    """One run, the estimate of its layout, and what a constant throughput says."""

    run: Run
    estimate: Estimate
    constant: float = 0.0

    @property
    def error(self) -> float:
        """Share by which the prediction is too long."""
        return self.estimate.step / self.run.seconds - 1.0

    @property
    def baseline(self) -> float:
        """The same of the constant throughput."""
        return self.constant / self.run.seconds - 1.0


def kind_of(run: Run) -> tuple[str, str]:
    """The device and precision that share an efficiency."""
    return machine_of(run).device.name, run.precision.removesuffix("-amp").replace("bf16", "fp16")


def estimate(run: Run, efficiency: float) -> Estimate:
    """The price of a run's own layout."""
    return pinned(run, machine_of(run, efficiency)).estimate()


def fitted(chosen: Sequence[Run], *, tries: int = 4) -> float:
    """The efficiency at which the predictions are as often too long as too short: mean logarithm of the ratio zero."""
    efficiency = 1.0
    for _ in range(tries):
        off = fmean(log(estimate(run, efficiency).step / run.seconds) for run in chosen)
        efficiency *= exp(1.3 * off)
    return efficiency


def rows_of(source: Sequence[Run], fits: Fits) -> list[Row]:
    """All rows of one source, with their baseline."""
    found = [Row(run, estimate(run, fits.get(kind_of(run), 1.0))) for run in source]
    rates = [_rate(row) for row in found if row.run.source != SOURCE or row.run.group == FITTED]
    rates = rates or [_rate(row) for row in found]
    middle = exp(fmean(log(rate) for rate in rates))
    return [replace(row, constant=row.run.seconds * _rate(row) / middle) for row in found]


def _rate(row: Row) -> float:
    """FLOP/s a GPU that the run reached."""
    replays = REPLAYED if row.run.recompute == "full" else 1.0
    return row.estimate.flops * replays / row.run.gpus / row.run.seconds


def table(rows: Iterable[Row]) -> str:
    """A line for each row."""
    heads = f"{'run':<7}{'group':<22}{'layers x width':<16}{'layout':<32}"
    lines = [f"{heads}{'measured':>10}{'predicted':>10}{'error':>8}{'constant':>10}"]
    for row in rows:
        run = row.run
        name = f"{run.id:<7}{run.group:<22}{f'{run.layers} x {run.width}':<16}{run.layout:<32}"
        lines.append(f"{name}{run.seconds:>10.3f}{row.estimate.step:>10.3f}{row.error:>+8.1%}{row.baseline:>+10.1%}")
    return "\n".join(lines)


def summary(rows: Sequence[Row]) -> str:
    """Mean and worst errors by group, beside those of the baseline."""
    lines = [f"{'source and group':<40}{'rows':>5}{'mean':>8}{'worst':>8}{'constant':>10}{'worst':>8}"]
    for key in dict.fromkeys((row.run.source, row.run.group) for row in rows):
        own = [row for row in rows if (row.run.source, row.run.group) == key]
        errors, others = [abs(row.error) for row in own], [abs(row.baseline) for row in own]
        means = f"{fmean(errors):>8.1%}{max(errors):>8.1%}{fmean(others):>10.1%}{max(others):>8.1%}"
        lines.append(f"{' '.join(key):<40}{len(own):>5}{means}  median ratio {1 + median(r.error for r in own):.2f}")
    return "\n".join(lines)


def freely(row: Row, efficiency: float) -> str:
    """What the planner would choose instead, and where its gain comes from."""
    machine = machine_of(row.run, efficiency)
    answer, _ = Planner(machine).search(asked(row.run, machine))
    if answer is None:
        return f"{row.run.id}: nothing fits"
    step, plan = answer.estimate.step, answer.plan
    gain = 1.0 - step / row.estimate.step
    chosen = f"{plan.mesh}, {plan.schedule if plan.mesh.pp > 1 else 'no pipeline'}, ZeRO {plan.zero}"
    text = (
        f"{row.run.id}: {chosen}, {plan.micro_steps} micro-steps: {step:.3f} s, {gain:.1%} less than {row.run.layout}"
    )
    return f"{text}; {because(row.estimate, answer.estimate)}" if gain > GAIN else text


def because(theirs: Estimate, ours: Estimate) -> str:
    """The part of a step that became shorter most, and the next."""
    a, b = dict(theirs.parts), dict(ours.parts)
    saved = sorted(((a.get(name, 0.0) - b.get(name, 0.0), name) for name in {*a, *b}), reverse=True)
    return "from " + ", ".join(f"{name} {-seconds / theirs.step:+.1%}" for seconds, name in saved[:2] if seconds > 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", nargs="*", help="sources to show; all without")
    parser.add_argument("--rows", nargs="*", help="rows to show; all without")
    parser.add_argument("--efficiency", type=float, help="the fitted number, where it is known from a run before")
    parser.add_argument("--unpinned", action="store_true", help="plan freely too")
    given = parser.parse_args()
    every = list(runs())
    fit_on = [run for run in every if (run.source, run.group) == (SOURCE, FITTED)]
    fits = {kind_of(fit_on[0]): given.efficiency or fitted(fit_on)}
    for (device, precision), efficiency in fits.items():
        print(f"{device}, {precision} and bf16: products at {efficiency:.4f} of the profile's rate", flush=True)
    shown: list[Row] = []
    for source in dict.fromkeys(run.source for run in every if not given.source or run.source in given.source):
        own = [run for run in every if run.source == source and (not given.rows or run.id in given.rows)]
        rows = rows_of(own, fits) if own else []
        shown += rows
        print(f"\n{source}\n{table(rows)}", flush=True)
        for row in rows if given.unpinned else []:
            print(freely(row, fits.get(kind_of(row.run), 1.0)), flush=True)
    print(f"\n{summary(shown)}")


if __name__ == "__main__":
    main()
