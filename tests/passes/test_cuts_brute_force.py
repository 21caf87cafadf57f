"""The flow program against every layout there is: graphs of a few ops, on machines of several kinds."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache

import pytest
from brute_force import BruteForce
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_graphs import GRAPHS

from fourfold.hardware import load
from fourfold.ir.graph import Block, Node
from fourfold.ir.mesh import Mesh
from fourfold.ir.plan import Plan
from fourfold.ir.rule import Rule
from fourfold.ir.workload import Workload
from fourfold.passes.cuts import CutTensors
from fourfold.passes.cutting.cutting import Cutter, Prices, cut
from fourfold.passes.price.costs import Costs

SMALL = ("feed-forward", "branch", "branch, dropout, tied")
DEGREES = (2, 4)
MACHINES = ("dgx-h200", "dgx-a100-80gb", "mi300x-8", "rtx4090-server-8", "cpu-gloo-4")
"""Fast links with all-reduce in the switch, fast links, links of one pair, PCIe, sockets."""


@cache
def all_layouts(name: str, n: int) -> BruteForce:
    return BruteForce(GRAPHS[name], n)


def plan_on(machine: str, name: str, n: int, length: int) -> tuple[Plan, Prices]:
    """A plan without layouts, and the prices that the machine's profile gives its ops and moves."""
    costs = Costs(load(machine))
    ranks = costs.machine.ranks
    work = Workload.fixed(length=length, sequences=ranks // n)
    plan = Plan(GRAPHS[name], {}, work, mesh=Mesh(dp=ranks // n, tp=n), capacity=length)
    seconds = costs.seconds(plan)

    def op(node: Node, rule: Rule, label: str, block: Block) -> float:
        times = seconds.op(node, rule, label, block)
        return times.forward + times.backward

    return replace(plan, layouts=CutTensors(costs)(plan).layouts), Prices(op, seconds.move, seconds.load.tokens)


def random_prices(seed: int, tokens: int, link: float, latency: float) -> Prices:
    """Ops of 400 TFLOP/s, each cut up to twice as dear or as cheap by a factor of its own; links of any speed."""

    def factor(*of: str) -> float:
        return random.Random(f"{seed} {of}").uniform(0.5, 2.0)

    def op(node: Node, rule: Rule, label: str, block: Block) -> float:
        return factor(block.name, node.name, label) * (1e-6 + rule.points(tokens) / 400e12)

    def move(kind: str, size: float) -> float:
        return factor(kind) * (latency + size / link)

    return Prices(op, move, tokens)


@pytest.mark.parametrize("length", (128, 65536))
@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("n", DEGREES)
@pytest.mark.parametrize("name", GRAPHS)
def test_no_layout_is_faster_on_a_machine(name: str, n: int, machine: str, length: int) -> None:
    plan, prices = plan_on(machine, name, n, length)
    every = all_layouts(name, n)
    assert every.price(plan.layouts, prices) == pytest.approx(every.least(prices), rel=1e-9)


@pytest.mark.parametrize("n", DEGREES)
@pytest.mark.parametrize("name", GRAPHS)
def test_the_seconds_are_those_of_the_layout(name: str, n: int) -> None:
    _, prices = plan_on("dgx-h200", name, n, 8192)
    layouts, seconds = cut(GRAPHS[name], n, prices)
    assert seconds == pytest.approx(all_layouts(name, n).price(layouts, prices), rel=1e-9)


@pytest.mark.parametrize("n", DEGREES)
@pytest.mark.parametrize("name", SMALL)
def test_a_cutter_forgets_the_prices_before(name: str, n: int) -> None:
    """One program under prices in turn, and a new one for each."""
    again = Cutter(GRAPHS[name], n, {})
    for seed, tokens in ((1, 64), (2, 2**18), (3, 64), (1, 64)):
        prices = random_prices(seed, tokens, 1e10, 1e-5)
        assert again(prices) == cut(GRAPHS[name], n, prices)


@given(
    name=st.sampled_from(SMALL),
    n=st.sampled_from(DEGREES),
    seed=st.integers(0, 10**6),
    tokens=st.integers(1, 2**20),
    link=st.floats(1e8, 1e12),
    latency=st.floats(0, 1e-3),
)
@settings(max_examples=150, deadline=None)
def test_no_layout_is_faster_at_random_prices(
    name: str, n: int, seed: int, tokens: int, link: float, latency: float
) -> None:
    prices = random_prices(seed, tokens, link, latency)
    every = all_layouts(name, n)
    layouts, _ = cut(GRAPHS[name], n, prices)
    assert every.price(layouts, prices) == pytest.approx(every.least(prices), rel=1e-9)
