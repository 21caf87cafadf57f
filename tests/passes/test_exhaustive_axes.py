"""The search against every plan of four axes there is: nothing here knows what the search leaves out, or why.

Only the price of one complete plan is shared. Recompute is every word of every layer, each for itself. Cuts over the
tensor axis are those of the flow program, for every number of micro-steps and every mesh (test_cuts_brute_force holds
that program against all cuts).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations, islice, product
from math import ceil, lcm

import pytest
import torch

from fourfold.compiler.api import plan_graph
from fourfold.compiler.capture import capture
from fourfold.compiler.models.llama import Llama, LlamaConfig
from fourfold.hardware import load
from fourfold.ir.graph import Graph
from fourfold.ir.mesh import Mesh
from fourfold.ir.plan import Layout, Plan, Precision, Sharing
from fourfold.ir.workload import Workload
from fourfold.passes.cuts import CutTensors
from fourfold.passes.price.costs import Costs

METHODS = ("ring", "gather_kv", "token_ring", "rsa")
LAYOUTS = ("contiguous", "zigzag", "striped")
SCHEDULES = {"1f1b": 1, "gpipe": 1, "zero_bubble": 1, "interleaved-2": 2, "interleaved-3": 3, "interleaved-4": 4}
MODES = ("none", "regions", "full")


@dataclass(frozen=True)
class Case:
    """A machine with `share` of its memory, layers, and sequences of a length. Where a price a plan takes too long,
    `every` is how many plans one is priced of, evenly spaced over all."""

    machine: str
    layers: int
    sequences: int
    length: int = 8192
    share: float = 1.0
    every: int = 1

    def __str__(self) -> str:
        return f"{self.machine}, {self.layers} layers, {self.sequences} x {self.length}, memory {self.share:g}"


@cache
def graph(layers: int) -> Graph:
    """Wide layers under a vocabulary that weighs: embedding and head are no layers."""
    with torch.device("meta"):
        return capture(Llama(LlamaConfig(64000, 4096, layers, 32, 8, 14336)), torch.bfloat16)


def meshes(ranks: int, calls: int) -> Iterator[Mesh]:
    """Every grid of four axes, a call for each pipeline stage."""
    degrees = [n for n in range(1, ranks + 1) if ranks % n == 0]
    for dp, tp, pp, sp in product(degrees, repeat=4):
        if dp * tp * pp * sp == ranks and pp <= calls:
            yield Mesh(dp=dp, tp=tp, pp=pp, sp=sp)


def sharings(sp: int) -> list[Sharing]:
    """Every way in which sp ranks share documents; ulysses gives each whole documents in any layout."""
    if sp == 1:
        return [Sharing()]
    inner = [u for u in range(2, sp) if sp % u == 0]
    found = [Sharing(method, layout) for method in METHODS for layout in LAYOUTS]
    found += [Sharing("usp", layout, u) for layout in LAYOUTS for u in inner]
    return [*found, Sharing("ulysses", "contiguous", sp)]


def loads(plan: Plan, case: Case) -> Iterator[Plan]:
    """Every number of micro-steps in which whole sequences can be dealt, each as small as it can be."""
    mesh = plan.mesh
    for steps in range(1, case.sequences + 1):
        share = ceil(case.sequences / (mesh.dp * steps))
        if ceil(case.sequences / (mesh.dp * share)) == steps:
            tokens = ceil(share * case.length / mesh.sp)
            yield replace(plan, micro_steps=steps, capacity=ceil(tokens / plan.bucket) * plan.bucket)


def lines(plan: Plan) -> Iterator[Plan]:
    """Every schedule, and every way to cut the calls into its stages."""
    if plan.mesh.pp == 1:
        yield plan
        return
    calls = len(plan.graph.calls)
    for name, held in SCHEDULES.items():
        for bounds in combinations(range(1, calls), plan.mesh.pp * held - 1):
            yield replace(plan, schedule=name, bounds=bounds)


def words(plan: Plan) -> list[tuple[str, ...]]:
    """Every recompute of every layer, each layer for itself."""
    mixing = [any(n.op == "attention" for n in plan.graph.blocks[c.block].nodes) for c in plan.graph.calls]
    return list(product(*(MODES if mixes else ("none",) for mixes in mixing)))


def layouts(start: Plan, case: Case, costs: Costs) -> dict[int, list[dict[str, Layout]]]:
    """The cuts of each tensor degree, for every mesh and number of micro-steps asked afresh."""
    found: dict[int, list[dict[str, Layout]]] = {}
    for mesh in meshes(costs.machine.ranks, len(start.graph.calls)):
        known = found.setdefault(mesh.tp, [])
        for plan in loads(replace(start, mesh=mesh, bucket=lcm(start.bucket, mesh.tp)), case):
            cut = dict(CutTensors(costs)(plan).layouts)
            if cut not in known:
                known.append(cut)
    return found


def everything(start: Plan, case: Case, costs: Costs) -> Iterator[Plan]:
    """All plans there are."""
    cuts = layouts(start, case, costs)
    for mesh in meshes(costs.machine.ranks, len(start.graph.calls)):
        base = replace(start, mesh=mesh, bucket=lcm(start.bucket, mesh.tp))
        zeros = (0,) if mesh.pool == 1 else (0, 1, 3) if mesh.pp > 1 else (0, 1, 2, 3)
        for cut, sharing, plan in product(cuts[mesh.tp], sharings(mesh.sp), loads(base, case)):
            laid = replace(plan, layouts=cut, sharing=sharing)
            for line, zero, word in product(lines(laid), zeros, words(plan)):
                if line.schedule != "zero_bubble" or zero < 2:
                    yield replace(line, zero=zero, recompute=word)


def check(case: Case) -> None:
    """No plan that fits takes less time than the one found."""
    whole = load(case.machine)
    machine = replace(whole, device=replace(whole.device, usable=whole.device.usable * case.share))
    workload = Workload.fixed(length=case.length, sequences=case.sequences)
    answer = plan_graph(graph(case.layers), workload, machine=machine, precision=Precision.bf16)
    costs = Costs(machine)
    start = replace(answer.plan, layouts={}, recompute=(), bounds=(), log=(), bucket=128)
    least, fastest = float("inf"), answer.plan
    for plan in islice(everything(start, case, costs), 0, None, case.every):
        priced = costs.priced(plan)
        if priced.step.seconds < least and priced.memory().fits(machine.device):
            least, fastest = priced.step.seconds, plan
    assert answer.estimate.step <= least * (1 + 1e-7), told(fastest, answer.plan)
    assert case.every > 1 or answer.estimate.step == pytest.approx(least, rel=1e-7)


def told(fastest: Plan, found: Plan) -> str:
    """Both plans, for whoever must find out why."""
    words = ("mesh", "zero", "micro_steps", "capacity", "schedule", "bounds", "sharing", "recompute")
    return "\n".join(
        f"{name}: {', '.join(f'{word} {getattr(plan, word)}' for word in words)}"
        for name, plan in (("fastest", fastest), ("search", found))
    )


QUICK = (
    Case("dgx-h200@1", 4, 3, share=0.4),
    Case("rtx4090-workstation-2", 2, 2, 4096),
    Case("dgx-h200@3", 1, 3),
)

FULL = (
    Case("dgx-h200@2", 4, 2, share=0.25),
    Case("dgx-h200@3", 2, 3, share=0.3),
    Case("dgx-h200@4", 2, 4, share=0.2),
    Case("l40s-server-8@4", 2, 2),
    Case("rtx4090-workstation-2:2", 2, 4, 2048),
)

SAMPLED = (
    Case("dgx-h200@4", 4, 4, share=0.25, every=149),
    Case("dgx-h200@8", 4, 2, share=0.12, every=499),
    Case("dgx-h200:2", 4, 2, share=0.1, every=1999),
)


@pytest.mark.parametrize("case", QUICK, ids=str)
def test_nothing_beats_the_search(case: Case) -> None:
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", (*FULL, *SAMPLED), ids=str)
def test_nothing_beats_the_search_on_more(case: Case) -> None:
    check(case)
