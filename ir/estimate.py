"""What a plan should cost, and what was weighed beside it: an estimate, priced candidates, refused meshes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fourfold.ir.plan import Plan


@dataclass(frozen=True, slots=True)
class Estimate:
    """The predicted cost of one optimizer step of one plan.

    `step` is its time; `parts` where it goes (name, seconds on the critical stream, exposed communication apart);
    `memory` maps a category to its (low, high) bytes on the fullest rank; `limit` is what a rank may use; `flops` the
    model FLOPs of a step on all ranks, causal attention halved; `mfu` their share of the machine's dense peak.
    """

    step: float
    parts: tuple[tuple[str, float], ...]
    memory: Mapping[str, tuple[float, float]]
    limit: float
    flops: float
    mfu: float
    tokens: int
    ranks: int

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second of the whole machine."""
        return self.tokens / self.step

    @property
    def peak(self) -> tuple[float, float]:
        """Total bytes on the fullest rank, low and high."""
        return sum(low for low, _ in self.memory.values()), sum(high for _, high in self.memory.values())


@dataclass(frozen=True, slots=True)
class Candidate:
    """A plan and its price."""

    plan: Plan
    estimate: Estimate


@dataclass(frozen=True, slots=True)
class Refusal:
    """A mesh that was not taken: why, and what would make it fit, each with the seconds a step would then take."""

    mesh: str
    reason: str
    repairs: tuple[tuple[str, float], ...] = ()
