"""What planning answers: the plan, what it should cost, the next-best plans, and the meshes that were refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fourfold.ir import report
from fourfold.ir.estimate import Candidate, Estimate, Refusal
from fourfold.ir.plan import Plan
from fourfold.ir.text import Section, plain

__all__ = ["Answer", "Candidate", "Estimate", "Refusal"]


@dataclass(frozen=True, slots=True)
class Answer:
    """The best plan with its price, `next_best` in order, refused meshes, and the seconds each pin adds to a step.

    `bound` is a time below which no mesh can come, those included that were not priced to their end.
    """

    plan: Plan
    estimate: Estimate
    next_best: tuple[Candidate, ...] = ()
    refused: tuple[Refusal, ...] = ()
    pins: Mapping[str, float] = field(default_factory=dict)
    solving: float = 0.0
    bound: float = 0.0

    @property
    def gap(self) -> float:
        """The share of the step that a better plan could save at most."""
        return max(0.0, 1.0 - self.bound / self.estimate.step)

    def sections(self) -> tuple[Section, ...]:
        """What is printed, piece by piece."""
        return (
            report.asked(self.plan),
            report.layout(self.plan),
            *report.cuts(self.plan),
            report.step(self.estimate),
            report.memory(self.estimate),
            *report.beside(self.estimate, self.next_best, self.refused),
            *report.bounded(self.estimate, self.bound),
            *report.pinned(self.estimate, self.plan, self.pins),
            *report.notes(self.plan),
        )

    def __str__(self) -> str:
        return plain(self.sections())
