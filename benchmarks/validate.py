"""Predicted against published seconds of a step: each run of benchmarks/data/published_runs.csv under its own layout.

    PYTHONPATH=src python benchmarks/validate.py [--source NAME ... | all] [--rows ID ...] [--unpinned] [--json]

One number is fitted for each device and precision of a source: by how much its products are slower than its profile
says. It multiplies the rate of matrix products, and of attention's, and nothing else: not the memory's, not the links'.
It is fitted on the ten weak-scaling rows of megatron-sc21, and on every second row of any other source; those rows are
marked `fit`. What a framework did otherwise than ours is in benchmarks/frameworks.py. Beside each row: a constant
throughput, the same FLOP/s a GPU (replays counted), fitted on the same rows; its mean error should be beaten by half.
`--unpinned` plans freely too, and tells where a gain above 15 % comes from.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from statistics import fmean, median

from fitting import SOURCE, Kind, Row, Watch, kind_of, rows_of
from published import DATA, Run, asked, machine_of, runs

from fourfold.compiler.pipeline import Planner
from fourfold.ir.estimate import Estimate
from fourfold.passes.price.costs import Costs

GAIN = 0.15
"""Share of the published layout's step from which a better one must say why."""

EXACT = 1e-3
"""Mean error of a baseline that has as many numbers as rows."""


def table(rows: Iterable[Row]) -> str:
    """A line for each row."""
    heads = f"{'run':<7}{'':<4}{'group':<22}{'layers x width':<16}{'layout':<32}"
    lines = [f"{heads}{'measured':>10}{'predicted':>10}{'error':>8}{'constant':>10}"]
    for row in rows:
        run, mark = row.run, "fit" if row.fitted else ""
        name = f"{run.id:<7}{mark:<4}{run.group:<22}{f'{run.layers} x {run.width}':<16}{run.layout:<32}"
        lines.append(f"{name}{run.seconds:>10.3f}{row.estimate.step:>10.3f}{row.error:>+8.1%}{row.baseline:>+10.1%}")
    return "\n".join(lines)


def groups(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """Rows by source, group and whether they were fitted on."""
    key = [(row.run.source, row.run.group, "fitted on" if row.fitted else "others") for row in rows]
    for one in dict.fromkeys(key):
        yield " ".join(one), [row for row, own in zip(rows, key, strict=True) if own == one]


def summary(rows: Sequence[Row]) -> str:
    """Mean and worst errors by group, beside those of the baseline, and whether they are half of its or less."""
    heads = f"{'mean':>8}{'worst':>8}{'constant':>10}{'worst':>8}{'of it':>7}  {'by half':<9}{'predicted/measured':>18}"
    lines = [f"{'source and group':<50}{'rows':>5}{heads}"]
    for name, own in groups(rows):
        errors, others = [abs(row.error) for row in own], [abs(row.baseline) for row in own]
        means = f"{fmean(errors):>8.1%}{max(errors):>8.1%}{fmean(others):>10.1%}{max(others):>8.1%}"
        middle = 1 + median(row.error for row in own)
        lines.append(f"{name:<50}{len(own):>5}{means}{verdict(fmean(errors), fmean(others))}{middle:>18.2f}")
    return "\n".join(lines)


def verdict(mean: float, baseline: float) -> str:
    """The mean error as a share of the baseline's, and whether that is beaten by half; nothing of a perfect one."""
    if baseline < EXACT:
        return f"{'':>7}  {'':<9}"
    return f"{mean / baseline:>7.2f}  {'beaten' if mean <= baseline / 2 else 'not so':<9}"


def left_out(sources: Iterable[str]) -> list[tuple[str, int, str]]:
    """Published rows that are not in the data: source, how many, why."""
    with (DATA / "published_left_out.csv").open(newline="") as file:
        found = [(row["source"], int(row["rows"]), row["reason"]) for row in csv.DictReader(file)]
    return [one for one in found if one[0] in set(sources)]


def freely(row: Row) -> dict[str, object]:
    """What the planner would choose instead, by how much it is shorter, and where that comes from."""
    machine = machine_of(row.run, row.efficiency)
    answer, _ = Planner(machine).search(asked(row.run, machine))
    if answer is None:
        return {"id": row.run.id, "plan": None}
    plan = answer.plan
    pipeline = f", {plan.schedule}" if plan.mesh.pp > 1 else ""
    recompute = "/".join(dict.fromkeys(plan.recompute))
    chosen = f"{plan.mesh}{pipeline}, ZeRO {plan.zero}, {plan.micro_steps} micro-steps, recompute {recompute}"
    alike = Costs(machine).priced(row.plan).estimate()
    return {"id": row.run.id, "plan": chosen, **gained(row.estimate, alike, answer.estimate)}


def gained(theirs: Estimate, alike: Estimate, ours: Estimate) -> dict[str, object]:
    """How much shorter our step is than theirs; above GAIN, what of it is how their framework ran their layout (`alike`
    is that layout as we would run it), and what the layout, each with the parts it comes from."""
    gain, why = 1.0 - ours.step / theirs.step, ""
    if gain > GAIN:
        why = f"the framework {because(theirs, alike)}; the layout {because(alike, ours)}"
    return {"step": ours.step, "gain": gain, "because": why}


def because(theirs: Estimate, ours: Estimate) -> str:
    """By how much a step changed, and the two parts that changed most in its direction, as shares of the first step."""
    a, b = dict(theirs.parts), dict(ours.parts)
    way = 1.0 if ours.step > theirs.step else -1.0
    changed = sorted(((way * (b.get(name, 0.0) - a.get(name, 0.0)), name) for name in {*a, *b}), reverse=True)
    named = ", ".join(f"{name} {way * seconds / theirs.step:+.1%}" for seconds, name in changed[:2] if seconds > 0)
    return f"{ours.step / theirs.step - 1:+.1%}" + (f" ({named})" if named else "")


def told(row: Row, found: Mapping[str, object]) -> str:
    """One free plan as a line."""
    if found["plan"] is None:
        return f"{row.run.id}: nothing fits"
    why = f"; {found['because']}" if found["because"] else ""
    return f"{row.run.id}: {found['plan']}: {found['step']:.3f} s, {found['gain']:.1%} less than {row.run.layout}{why}"


def value_of(row: Row) -> dict[str, object]:
    """A row for programs."""
    own = {"fitted": row.fitted, "efficiency": row.efficiency, "predicted": row.estimate.step, "error": row.error}
    constant = {"constant": row.constant, "constant_error": row.baseline}
    return {**asdict(row.run), **own, **constant, "parts": dict(row.estimate.parts)}


def progress(total: int) -> Watch:
    """Draws how many rows are laid out, where somebody looks."""
    done = 0

    def one() -> None:
        nonlocal done
        done += 1
        bar = "#" * (30 * done // total)
        end = "\n" if done == total else ""
        print(f"\r[{bar:<30}] {done}/{total}", end=end, file=sys.stderr, flush=True)

    return one if sys.stderr.isatty() else lambda: None


def arguments() -> argparse.Namespace:
    """What the user asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", nargs="*", default=[SOURCE], help=f"sources to show, or all; {SOURCE} without")
    parser.add_argument("--rows", nargs="*", help="rows to show, with --efficiency; all without")
    parser.add_argument("--efficiency", type=float, help="not fitted: the number from a run before")
    parser.add_argument("--unpinned", action="store_true", help="plan freely too")
    parser.add_argument("--json", action="store_true", help="one JSON value instead of tables")
    given = parser.parse_args()
    if given.rows and given.efficiency is None:
        parser.error("--rows leaves too few rows to fit on: give --efficiency too")
    return given


def picked(given: argparse.Namespace) -> dict[str, list[Run]]:
    """The runs to show by source."""
    found: dict[str, list[Run]] = {}
    for run in runs():
        if ("all" in given.source or run.source in given.source) and (not given.rows or run.id in given.rows):
            found.setdefault(run.source, []).append(run)
    return found


def main() -> None:
    given = arguments()
    shown: list[Row] = []
    plans: list[Mapping[str, object]] = []
    sources = picked(given)
    watch = progress(sum(len(own) for own in sources.values()))
    for source, own in sources.items():
        rows = rows_of(own, _known(own, given.efficiency), watch)
        shown += rows
        if not given.json:
            print(f"\n{source}: products at {_efficiencies(rows)} of the profile's rate\n{table(rows)}", flush=True)
        for row in rows if given.unpinned else ():
            plans.append(freely(row))
            if not given.json:
                print(told(row, plans[-1]), flush=True)
    missing = left_out(sources)
    if given.json:
        print(json.dumps({"rows": [value_of(row) for row in shown], "unpinned": plans, "left_out": missing}))
        return
    print(f"{summary(shown)}\n")
    print(*(f"left out of {source}: {count} rows, {reason}" for source, count, reason in missing), sep="\n")


def _known(own: Sequence[Run], efficiency: float | None) -> Mapping[Kind, float]:
    return {} if efficiency is None else dict.fromkeys({kind_of(run) for run in own}, efficiency)


def _efficiencies(rows: Sequence[Row]) -> str:
    found = dict.fromkeys((*kind_of(row.run), row.efficiency) for row in rows)
    return ", ".join(f"{efficiency:.4f} ({device}, {bits})" for device, bits, efficiency in found)


if __name__ == "__main__":
    main()
