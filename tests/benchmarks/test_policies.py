"""The simulation of Zeppelin's clusters: steps of exactly so many tokens, its baseline, and the ports of its nodes."""

from __future__ import annotations

import random

import policies
import policy_cases as cases
import pytest

from fourfold.ir.batch_rules import Bounds, complaints
from fourfold.passes.batch.timing.terms import Terms
from fourfold.passes.sequence.routing import Routing, routing


@pytest.mark.parametrize("dataset", cases.DATASETS)
def test_a_step_has_so_many_tokens_whatever_is_drawn(dataset: str) -> None:
    rng = random.Random(0)
    drawn = [cases.batch(dataset, 65_536, rng) for _ in range(50)]
    assert {sum(lengths) for lengths in drawn} == {65_536}
    assert min(map(min, drawn)) >= 1


def test_lengths_are_those_of_the_list_they_stand_for() -> None:
    """Mean 3,052 tokens, half below 1,914 and 99 % below 16,273: the list's own figures, within a bucket."""
    rng = random.Random(0)
    drawn = sorted(cases.prolong(rng) for _ in range(20_000))
    assert sum(drawn) / len(drawn) == pytest.approx(3052, rel=0.1)
    assert drawn[len(drawn) // 2] == pytest.approx(1914, rel=0.1)
    assert drawn[int(0.99 * len(drawn))] == pytest.approx(16_273, rel=0.15)


def test_the_baseline_is_everything_on_everyone() -> None:
    bounds = Bounds(16, 8192, 3, 32)
    machine = cases.machine_of("A", 16)
    terms = Terms(machine, bounds, 1, 8, 0.0, 1e-6, 0.0, (), "bfloat16")
    batch = policies.te_cp(cases.batch("GitHub", 65_536, random.Random(1)), terms)
    assert complaints(batch, bounds) == ()
    assert len(batch.teams) == 1 and max(batch.held.values()) <= 4098


def test_the_nodes_of_cluster_a_have_four_ports() -> None:
    machine = cases.machine_of("A", 16)
    assert routing(machine, 1, proxies=True) == Routing(2.0, 4.0)
    assert routing(machine, 2, proxies=True) == Routing(1.0, 4.0)
    assert routing(machine, 4, proxies=True) == Routing(1.0, 2.0)
