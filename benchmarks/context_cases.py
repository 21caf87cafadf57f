"""The long sequences that are trained, and how all ranks share each: plans made by hand, which need no solver."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from measuring import LLAMA_8B, TINY
from ours import Variant

from fourfold.compiler.models.llama import LlamaConfig
from fourfold.ir.graph import Graph
from fourfold.ir.mesh import Mesh
from fourfold.ir.plan import Layout, Plan, Precision, Sharing
from fourfold.ir.workload import Workload


@dataclass(frozen=True, slots=True)
class Case:
    """A length, a depth, and which of `HOW` are run: one sequence a step, shared by all ranks."""

    name: str
    length: int
    layers: int
    runs: tuple[str, ...]

    @property
    def config(self) -> LlamaConfig:
        """The model: llama-8b with fewer layers, or a toy."""
        return replace(LLAMA_8B if self.length > SHORT else TINY, layers=self.layers)


@dataclass(frozen=True, slots=True)
class How:
    """A sharing (`ulysses` 0: heads over all ranks), what is made again in backward, and what ZeRO cuts."""

    sharing: Sharing
    recompute: str = "none"
    zero: int = 3


SHORT = 1024
"""Toys are up to this long."""

RING = Sharing("ring", "zigzag", 1, "bfloat16")
HOW = {
    "ring": How(RING),
    "gather_kv": How(Sharing("gather_kv", "zigzag", 1, "bfloat16")),
    "ulysses": How(Sharing("ulysses", "contiguous", 0, "bfloat16")),
    "ring, regions": How(RING, recompute="regions"),
    "ring, fp32 dKV": How(replace(RING, travel="float32")),
    "ring, ZeRO 1": How(RING, zero=1),
    "gather_kv, regions": How(Sharing("gather_kv", "zigzag", 1, "bfloat16"), recompute="regions"),
    "ulysses, regions": How(Sharing("ulysses", "contiguous", 0, "bfloat16"), recompute="regions"),
    "usp": How(Sharing("usp", "zigzag", 2, "bfloat16")),
}
"""By name, in the order they are run; "usp" where more than two ranks share."""

METHODS = ("ring", "gather_kv", "ulysses", "usp")
CASES = {
    case.name: case
    for case in (
        Case("128k", 2**17, 8, tuple(HOW)),
        Case("32k", 2**15, 8, METHODS),
        Case("512k", 2**19, 1, ("ring, regions",)),
    )
}
TOY = Case("toy", 64, 2, tuple(HOW))
CHECK, TOY_CHECK = Case("check", 2**13, 2, METHODS), Case("check", 64, 2, METHODS)


def plan_of(graph: Graph, ranks: int, case: Case, how: How) -> Plan:
    """All ranks share one sequence a step."""
    real = case.length > SHORT
    return Plan(
        graph,
        {},
        Workload.fixed(length=case.length, sequences=1),
        Mesh(sp=ranks),
        how.zero,
        Precision.bf16 if real else Precision.fp32,
        capacity=case.length // ranks,
        bucket=128 if real else 8,
        layouts={name: Layout() for name in graph.blocks},
        recompute=(how.recompute,) * len(graph.calls),
        sharing=replace(how.sharing, ulysses=how.sharing.ulysses or ranks),
    )


def variants(graph: Graph, ranks: int, case: Case) -> Iterator[Variant]:
    """The case's own plans for so many ranks."""
    for name in case.runs:
        if name != "usp" or ranks > 2:
            yield Variant(f"{case.name} {name}", plan_of(graph, ranks, case, HOW[name]))


def planned(folder: Path | None, ranks: int, case: Case) -> Iterator[Variant]:
    """Plans of the case that plan_context.py wrote, for so many ranks; their layouts took the solver."""
    for path in sorted(folder.glob("*.plan.json")) if folder else []:
        variant = Variant.read(path)
        if variant.plan.mesh.ranks == ranks and variant.name.split()[0] == case.name:
            yield variant
