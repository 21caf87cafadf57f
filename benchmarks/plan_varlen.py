"""Plan and place the batches that varlen.py trains, by every policy, with the solver and on any machine.

    PYTHONPATH=src python benchmarks/plan_varlen.py --gpus 2 --out plans/varlen-2
    PYTHONPATH=src python benchmarks/plan_varlen.py --toy --out plans/varlen-toy

A case's capacity is what a device has room for; its batch grows with it. One folder a case: its static plan, and a
placement with its predicted seconds for each policy that can place the batch. Policies that place it alike are one
file, under the first one's name.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from varlen_cases import CASES, TOY, Case

from fourfold.compiler.api import plan_graph
from fourfold.compiler.capture import capture
from fourfold.compiler.models.llama import Llama
from fourfold.hardware import load
from fourfold.hardware.errors import InfeasibleError
from fourfold.hardware.topology import Machine
from fourfold.ir.answer import Answer
from fourfold.ir.batch import BatchPlan
from fourfold.ir.graph import Graph
from fourfold.ir.plan import Plan, Precision
from fourfold.ir.schedule import Schedule
from fourfold.ir.workload import Workload
from fourfold.passes.batch import POLICIES
from fourfold.passes.batch.showing.compare import Compared, compared
from fourfold.passes.batch.static_cp import alike
from fourfold.passes.batch.timing.orders import schedule_of
from fourfold.passes.batch.timing.planned import terms_of
from fourfold.passes.batch.timing.terms import Terms
from fourfold.passes.batch.timing.timing import timed

STEP = 2048
"""Tokens by which a capacity grows."""


def main() -> int:
    """Plan each case and say what was placed."""
    arguments = parsed()
    name = f"{'cpu-gloo' if arguments.toy else 'h200'}-{max(2, arguments.gpus)}"
    machine = load(f"{name}@1" if arguments.gpus == 1 else name)
    precision = Precision.fp32 if arguments.toy else Precision.bf16
    for case in (TOY if arguments.toy else CASES).values():
        if case.name not in (arguments.cases or (case.name,)) or case.ranks not in (0, machine.ranks):
            continue
        how = {"zero": arguments.zero, "fixed": arguments.fixed or arguments.toy or case.ranks > 0}
        case, plan = filled(case, machine, precision, **how)
        folder = arguments.out / case.name
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("*.json"):
            old.unlink()
        plan.save(folder / "plan.json")
        terms = terms_of(plan, machine)
        lengths = case.lengths(plan.mesh.pool)
        print(f"{case.name}: {len(lengths)} sequences, {sum(lengths):,} tokens, longest {max(lengths):,}; {plan.mesh}")
        print(f"  room for {plan.capacity:,} tokens a rank, recompute {'/'.join(dict.fromkeys(plan.recompute))}")
        placed(lengths, terms, folder)
    return 0


def filled(case: Case, machine: Machine, precision: Precision, *, zero: int, fixed: bool) -> tuple[Case, Plan]:
    """The case with as many tokens a rank as its devices have room for, in steps of STEP, and its plan; or as it is."""
    with torch.device("meta"):
        graph = capture(Llama(case.config), getattr(torch, precision.compute))
    capacity = case.capacity if fixed else case.capacity // 2
    found = planned(graph, case.sized(capacity), machine, precision, zero=zero)
    while not fixed:
        capacity += STEP
        try:
            found = planned(graph, case.sized(capacity), machine, precision, zero=zero)
        except InfeasibleError:
            break
    low, high = (b / 1e9 for b in found.estimate.peak)
    print(f"{case.name}: {low:.0f} to {high:.0f} GB of {found.estimate.limit / 1e9:.0f} predicted")
    return case.sized(found.plan.capacity), replace(found.plan, log=())


def planned(graph: Graph, case: Case, machine: Machine, precision: Precision, *, zero: int) -> Answer:
    """Data parallel over all devices, the capacity of the case. Raises InfeasibleError where it has no room."""
    workload = Workload.of(min(length, case.capacity) for length in case.lengths(machine.ranks))
    pins = {"dp": machine.ranks, "tp": 1, "zero": zero, "capacity": case.capacity, "recompute": "none"}
    return plan_graph(graph, workload, machine=machine, precision=precision, pins=pins, top=0)


def placed(lengths: tuple[int, ...], terms: Terms, folder: Path) -> None:
    """Writes each different placement and prints what it is predicted to take."""
    known: dict[object, str] = {}
    for one in (*compared(lengths, terms, tuple(POLICIES), watch=lambda name: None), shared(lengths, terms)):
        if one.batch is None or one.timing is None:
            print(f"  {one.policy:<12} cannot: {one.refused}")
            continue
        content = (one.batch.pieces, one.batch.moves, one.batch.retained, one.batch.offloads)
        first = known.setdefault(content, one.policy)
        told(one, first)
        if first == one.policy:
            one.batch.save(folder / f"{one.policy}.batch.json")
        facts = {"placement": first, "seconds": one.timing.seconds, "bound": one.timing.bound}
        facts["orders"] = [str(order(one.batch, rank, terms)) for rank in range(one.batch.ranks)]
        (folder / f"{one.policy}.json").write_text(json.dumps(facts) + "\n")


def order(batch: BatchPlan, rank: int, terms: Terms) -> Schedule:
    """What a rank runs."""
    return schedule_of(batch, rank, stages=1, zero=terms.bounds.zero, kind="1f1b")


def shared(lengths: tuple[int, ...], terms: Terms) -> Compared:
    """Every sequence over all ranks, as context parallelism does it."""
    batch = alike(lengths, terms.bounds.ranks, terms, policy="context parallel")
    return Compared(batch.policy, batch, timed(batch, terms), 0.0)


def told(one: Compared, first: str) -> None:
    """A line for a placement."""
    assert one.batch is not None and one.timing is not None
    same = "" if first == one.policy else f", placed as by {first}"
    seconds, balance = one.timing.seconds, one.timing.balance
    print(f"  {one.policy:<12} {seconds:8.3f} s, balance {balance:.0%}, {one.batch.micro_steps} micro-steps{same}")


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, choices=(1, 2, 4), default=2)
    parser.add_argument("--zero", type=int, choices=(0, 1, 3), default=1)
    parser.add_argument("--fixed", action="store_true", help="capacities as the cases say, as was measured so far")
    parser.add_argument("--toy", action="store_true", help="small batches for CPU processes")
    parser.add_argument("--cases", nargs="*", help="only these")
    parser.add_argument("--out", type=Path, required=True, help="a folder for the plans")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
