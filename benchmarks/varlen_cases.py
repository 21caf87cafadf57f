"""Batches of uneven lengths: drawn from the shipped distributions, of a size that one to four GPUs train in seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.resources import files
from math import exp, log
from random import Random

from measuring import LLAMA_8B, TINY

from fourfold.compiler.models.llama import LlamaConfig

EIGHT = replace(LLAMA_8B, layers=8)
FOUR = replace(LLAMA_8B, layers=4)
BENCH = LlamaConfig(vocabulary=131072, width=2048, layers=12, heads=16, kv_heads=16, feed_forward=8192)
"""The model of Megatron-core's dynamic context parallel benchmark, but for its ungated feed-forward."""


@dataclass(frozen=True)
class Case:
    """One batch. capacity: tokens of a rank's micro-step; tokens: of the batch, about, on each rank of the pool.

    longest: to which sequences are cut; drawn: a shipped distribution, or how lengths are drawn. ranks: of the only
    pool that it is for, whose capacity is part of it; where 0, it is planned with as much as a device has room for.
    """

    name: str
    config: LlamaConfig
    drawn: str
    capacity: int
    tokens: int
    longest: int
    seed: int = 1
    ranks: int = 0

    def sized(self, capacity: int) -> Case:
        """With another capacity, and a batch and a longest sequence as many times as large."""
        tokens, longest = (number * capacity // self.capacity for number in (self.tokens, self.longest))
        return replace(self, capacity=capacity, tokens=tokens, longest=longest)

    def lengths(self, ranks: int) -> tuple[int, ...]:
        """The lengths of its sequences."""
        random, found, total = Random(self.seed), [], 0
        while total < self.tokens * ranks:
            length = max(2, min(self.longest, self.one(random)))
            length = min(length, self.tokens * ranks - total) if total + length > self.tokens * ranks else length
            found.append(max(2, length))
            total += found[-1]
        return tuple(found)

    def one(self, random: Random) -> int:
        """The length of one sequence."""
        if self.drawn == "lognormal":
            # Mean 1024, sigma 1.5, from 128 to 8192.
            return max(128, min(8192, round(random.lognormvariate(log(1024) - 1.5**2 / 2, 1.5))))
        if self.drawn == "tailed" and random.random() < 0.01:
            return round(exp(random.uniform(log(65536), log(524288))))
        return round(_quantile(self.table, random.random()))

    @cached_property
    def table(self) -> list[int]:
        """Lengths at evenly spaced quantiles."""
        name = "prolong" if self.drawn == "tailed" else self.drawn
        text = (files("fourfold.compiler") / "lengths" / f"{name}.txt").read_text()
        return [int(line) for line in text.splitlines() if line and not line.startswith("#")]


def _quantile(table: list[int], share: float) -> float:
    place = share * (len(table) - 1)
    low = min(int(place), len(table) - 2)
    return table[low] + (place - low) * (table[low + 1] - table[low])


CASES: Mapping[str, Case] = {
    case.name: case
    for case in (
        Case("prolong", EIGHT, "prolong", 98304, 192000, 98304),
        Case("wikipedia", EIGHT, "wikipedia", 98304, 192000, 98304),
        Case("commoncrawl", EIGHT, "commoncrawl", 98304, 192000, 98304),
        Case("tailed", FOUR, "tailed", 196608, 190000, 229376, seed=10),
        Case("megatron", BENCH, "lognormal", 4224, 8 * 4000, 8192, ranks=2),
        Case("megatron-4", BENCH, "lognormal", 2112, 8 * 2000, 8192, ranks=4),
    )
}
TOY: Mapping[str, Case] = {
    name: replace(case, config=TINY, capacity=256, tokens=480, longest=400 if name == "tailed" else 200, ranks=0)
    for name, case in CASES.items()
    if case.ranks != 4
}
"""The same in a size that a CPU runs: only that the programs do."""
