"""One efficiency a device and precision, fitted on some runs of a source; what it and a constant throughput predict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, log
from statistics import fmean

from published import PRECISIONS, Run, machine_of, pinned, priced_as_run

from fourfold.ir.estimate import Estimate
from fourfold.ir.plan import Plan
from fourfold.passes.sequence.shared import RATES

SOURCE, WEAK = "megatron-sc21", "weak-scaling"
"""The source whose fit is on one group of its rows; others fit on every second row."""

FIRST = 0.9
"""The efficiency that layouts are cut at, and from which fits begin."""

RANGE = (0.1, 1.3)
"""Efficiencies outside are not believed: what is short of them has another cause."""

STEP = 1.3
"""How much more than the miss the efficiency is changed: products are not all of a step."""

REPLAYED = 4 / 3
"""FLOPs of a step that does its forward twice, of one that does not."""

Kind = tuple[str, str]
"""A device and a precision."""

Watch = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Case:
    """A run with its own layout as a plan."""

    run: Run
    plan: Plan

    def estimate(self, efficiency: float) -> Estimate:
        """Its price as its framework ran it."""
        return priced_as_run(self.run, self.plan, machine_of(self.run, efficiency)).estimate()

    def rate(self) -> float:
        """FLOP/s a GPU that the run reached, replays counted."""
        replays = REPLAYED if self.run.recompute == "full" else 1.0
        return self.estimate(FIRST).flops * replays / self.run.gpus / self.run.seconds


@dataclass(frozen=True, slots=True)
class Row:
    """One run and its layout: whether it was fitted on, its estimate, seconds at a constant throughput."""

    run: Run
    plan: Plan
    fitted: bool
    efficiency: float
    estimate: Estimate
    constant: float

    @property
    def error(self) -> float:
        """Share by which the prediction is too long."""
        return self.estimate.step / self.run.seconds - 1.0

    @property
    def baseline(self) -> float:
        """The same of the constant throughput."""
        return self.constant / self.run.seconds - 1.0


def kind_of(run: Run) -> Kind:
    """The device and precision that share an efficiency: products in fp16 and bf16 run at one rate."""
    return machine_of(run).device.name, RATES[PRECISIONS[run.precision].compute].replace("bf16", "fp16")


def case_of(run: Run) -> Case:
    """A run with its layout."""
    return Case(run, pinned(run, machine_of(run, FIRST)))


def chosen(cases: Sequence[Case]) -> list[Case]:
    """The cases of one source and kind that are fitted on: its weak-scaling rows, or every second row."""
    return [c for c in cases if (c.run.source, c.run.group) == (SOURCE, WEAK)] or list(cases[::2])


def fitted(cases: Sequence[Case], *, tries: int = 4) -> float:
    """The efficiency at which the mean logarithm of predicted over published seconds is nought."""
    efficiency = FIRST
    for _ in range(tries):
        off = fmean(log(case.estimate(efficiency).step / case.run.seconds) for case in cases)
        efficiency = min(RANGE[1], max(RANGE[0], efficiency * exp(STEP * off)))
    return efficiency


def rows_of(source: Sequence[Run], known: Mapping[Kind, float], watch: Watch) -> list[Row]:
    """All rows of one source; `known` has efficiencies that are not to be fitted; `watch` is called for each row."""
    cases = []
    for run in source:
        cases.append(case_of(run))
        watch()
    found = []
    for kind in dict.fromkeys(kind_of(case.run) for case in cases):
        own = [case for case in cases if kind_of(case.run) == kind]
        found += _rows_of_kind(own, known.get(kind))
    order = {run.id: i for i, run in enumerate(source)}
    return sorted(found, key=lambda row: order[row.run.id])


def _rows_of_kind(cases: Sequence[Case], known: float | None) -> list[Row]:
    on = chosen(cases)
    efficiency = fitted(on) if known is None else known
    middle = exp(fmean(log(case.rate()) for case in on))
    names = {case.run.id for case in on}
    return [
        Row(
            case.run,
            case.plan,
            case.run.id in names,
            efficiency,
            case.estimate(efficiency),
            case.run.seconds * case.rate() / middle,
        )
        for case in cases
    ]
