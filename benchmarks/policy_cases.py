"""What policies.py simulates: clusters, models, lengths of documents, and the terms of each pool.

Zeppelin's evaluation (arXiv 2509.21841) is known to us from its abstract and from notes; what they do not say is
assumed here, and ASSUMED says so.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fourfold.compiler.api import plan_graph
from fourfold.compiler.capture import capture
from fourfold.compiler.models.llama import Llama, LlamaConfig
from fourfold.hardware import load
from fourfold.hardware.topology import Machine
from fourfold.ir.graph import Graph
from fourfold.ir.workload import Workload
from fourfold.passes.batch.timing.planned import terms_of
from fourfold.passes.batch.timing.terms import Terms

DATA = Path(__file__).parent / "data"
SHARE = 4096
"""Tokens of a step for each rank of the pool."""
ROOM = 2 * SHARE
"""Tokens that a rank has room for."""

ASSUMED = (
    "clusters: A as published (8 x A800, 4 x 200 Gb/s a node), C too (8 x H200, 8 x 400 Gb/s); B's eight ports are",
    "  taken as 400 Gb/s",
    "models: widths of the first LLaMA (3B: OpenLLaMA), as many key heads as heads, vocabulary 32,000; 1, 1, 2 and 4",
    "  tensor ranks",
    f"step: {SHARE:,} tokens a pool rank, room for {ROOM:,}, ZeRO-3, bf16, gradients of keys travel in bf16 too",
    "ProLong: a histogram of 77,932 measured lengths (DistCA's simulator); ArXiv and GitHub: no list is public, these",
    "  are surrogates (lognormal of mean 18K; lognormal body with a Pareto tail)",
    "documents are cut at the tokens of the step; the last of a step is cut to fill it",
    "TE-CP: every document on the whole pool by a zigzag ring, messages behind kernels, over the last rank's own port",
    "prices are the planner's, uncalibrated between nodes; Zeppelin's own code is not public and was not run",
)
"""What the notes do not say, line by line."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A model and the tensor ranks it runs on."""

    config: LlamaConfig
    tensor: int


CLUSTERS: Mapping[str, str] = {
    "A": str(DATA / "hgx-a800-4x200g.toml"),
    "B": "hgx-h800",
    "C": "dgx-h200",
}
SHAPES: Mapping[str, Shape] = {
    "3B": Shape(LlamaConfig(32000, 3200, 26, 32, 32, 8640), 1),
    "7B": Shape(LlamaConfig(32000, 4096, 32, 32, 32, 11008), 1),
    "13B": Shape(LlamaConfig(32000, 5120, 40, 40, 40, 13824), 2),
    "30B": Shape(LlamaConfig(32000, 6656, 60, 52, 52, 17920), 4),
}

PROLONG = (
    (513, 14.973),
    (1025, 38.414),
    (2049, 26.949),
    (4097, 14.406),
    (8193, 4.272),
    (16385, 0.779),
    (32769, 0.146),
    (65537, 0.039),
    (131073, 0.017),
    (262145, 0.005),
)
"""First length of a bucket that ends at twice it, and its share of the documents in percent."""


def prolong(rng: random.Random) -> int:
    """A length of the list, even in its power inside a bucket."""
    (low, _) = rng.choices(PROLONG, weights=[share for _, share in PROLONG])[0]
    return round(low * 2 ** rng.random())


def arxiv(rng: random.Random) -> int:
    """Papers: a lognormal of mean 18,000 tokens and sigma 0.9."""
    return max(64, round(rng.lognormvariate(math.log(18_000) - 0.9**2 / 2, 0.9)))


def github(rng: random.Random) -> int:
    """Repositories: 92 % lognormal of mean 3,000 below 8K, 8 % Pareto of index 1 from 8K to 2M."""
    if rng.random() < 0.08:
        low, high = 8192.0, 2_097_152.0
        return round(low / (1.0 - rng.random() * (1.0 - low / high)))
    return min(8192, max(16, round(rng.lognormvariate(math.log(3000) - 0.5, 1.0))))


DATASETS: Mapping[str, Callable[[random.Random], int]] = {"ArXiv": arxiv, "GitHub": github, "ProLong": prolong}


def batch(dataset: str, tokens: int, rng: random.Random) -> Sequence[int]:
    """Documents of exactly so many tokens."""
    found: list[int] = []
    while (left := tokens - sum(found)) > 0:
        found.append(min(left, DATASETS[dataset](rng)))
    return found


def captured(name: str) -> Graph:
    """The graph of a model."""
    with torch.device("meta"):
        model = Llama(SHAPES[name].config)
    return capture(model, torch.bfloat16)


def machine_of(cluster: str, ranks: int) -> Machine:
    """As many of its nodes as hold so many ranks."""
    return load(f"{CLUSTERS[cluster]}:{-(-ranks // 8)}")


def pool_of(graph: Graph, cluster: str, model: str, pool: int) -> Terms:
    """What a pool of so many ranks gives to whoever places a batch. Raises InfeasibleError where it does not fit."""
    tensor = SHAPES[model].tensor
    machine = machine_of(cluster, pool * tensor)
    workload = Workload.fixed(length=SHARE, sequences=pool)
    pins = {"tp": tensor, "pp": 1, "sp": 1, "dp": pool, "zero": 3, "capacity": ROOM}
    plan = plan_graph(graph, workload, machine=machine, pins=pins, top=0).plan
    terms = terms_of(plan)
    return replace(terms, bounds=replace(terms.bounds, capacity=ROOM), travel="bfloat16")
