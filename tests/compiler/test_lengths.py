"""Shipped lengths that no list was published for: what their headers say is what is in them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import NormalDist

import pytest

LENGTHS = Path(__file__).parents[2] / "compiler" / "lengths"
COUNT = 512


@cache
def shipped(name: str) -> list[int]:
    lines = (LENGTHS / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return [int(line) for line in lines if not line.startswith("#")]


def commoncrawl(source: random.Random) -> float:
    """One draw, by rejection and by inverting a cut Pareto."""
    low, high, index = 8192, 384 * 1024, 1.15
    if source.random() < 0.06:
        return float(low * (1 - source.random() * (1 - (low / high) ** index)) ** (-1 / index))
    while (length := NormalDist(math.log(3000) - 0.5).inv_cdf(source.random())) > math.log(low):
        pass
    return math.exp(length)


def heavy(source: random.Random) -> float:
    """One draw: a document of the body, between two of its quantiles, or of the tail."""
    if source.random() < 0.01:
        return 2.0 ** source.uniform(16, 19)
    body = shipped("prolong")
    at = min(max(source.random() * COUNT - 0.5, 0.0), COUNT - 1.001)
    low, share = int(at), at % 1
    return body[low] + share * (body[low + 1] - body[low])


@pytest.mark.parametrize(("name", "draw"), [("commoncrawl", commoncrawl), ("heavy", heavy)])
def test_quantiles_are_those_of_drawn_documents(name: str, draw: Callable[[random.Random], float]) -> None:
    found = shipped(name)
    assert len(found) == COUNT and found == sorted(found)
    source = random.Random(0)
    drawn = sorted(draw(source) for _ in range(20_000))
    for i in range(8, COUNT - 8, 8):
        below = sum(length <= found[i] for length in drawn) / len(drawn)
        assert below == pytest.approx((i + 0.5) / COUNT, abs=0.012), (i, found[i])


def test_the_tail_of_heavy_has_the_tokens_it_says() -> None:
    found = shipped("heavy")
    tail = [length for length in found if length >= 2**16]
    assert len(tail) == round(COUNT * 0.01) and max(tail) < 2**19
    assert sum(tail) / sum(found) == pytest.approx(0.42, abs=0.005)


def test_the_surrogate_says_what_it_is() -> None:
    assert "SURROGATE" in (LENGTHS / "commoncrawl.txt").read_text(encoding="utf-8").splitlines()[0]
