"""How many tokens one micro-step of one rank holds, and how long its documents are."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from fourfold.ir.plan import Plan


@dataclass(frozen=True, slots=True)
class Load:
    """A rank's micro-step: tokens and causal pairs, the token-weighted mean document length, tokens of the fullest.

    Tokens and pairs are means over the micro-steps of a step: time follows them, memory the fullest of them.
    """

    tokens: int
    pairs: float
    length: float
    fullest: int


def load_of(plan: Plan) -> Load:
    """The micro-steps of the rank that has most to do; sp ranks share one's documents evenly."""
    workload, sp = plan.workload, plan.mesh.sp
    share = busiest(plan) / plan.micro_steps
    tokens = rounded(ceil(max(workload.longest, ceil(workload.tokens * share)) / sp), plan.bucket)
    alone = workload.longest * (workload.longest + 1) / 2
    squares = sum(count * length * length for length, count in workload.lengths)
    pairs = max(alone, workload.pairs * share) / sp
    return Load(tokens, pairs, squares / workload.tokens, max(plan.capacity, tokens))


def busiest(plan: Plan) -> float:
    """The share of a step's tokens that the group with most of them has: whole sequences where all are alike."""
    workload, groups = plan.workload, plan.mesh.dp
    if len(workload.lengths) == 1:
        return ceil(workload.sequences / groups) / workload.sequences
    return max(1 / groups, workload.longest / workload.tokens)


def rounded(tokens: int, bucket: int) -> int:
    """`tokens` padded to whole buckets."""
    return -(-tokens // bucket) * bucket
