"""1F1B: as many forwards as there are stages ahead, then a backward after each forward."""

from __future__ import annotations

from fourfold.ir.schedule import Action, Schedule


def one_f_one_b(ranks: int, micro_steps: int) -> Schedule:
    """A backward as soon as there can be one: min(p - s, m) micro-steps are in flight on stage s.

    Bubble (p - 1) / (m + p - 1) at equal stages. Source: arXiv 1806.03377 (PipeDream), with a flush.
    """
    return Schedule.of([_line(rank, min(ranks - rank, micro_steps), micro_steps) for rank in range(ranks)])


def _line(stage: int, warm_up: int, micro_steps: int) -> list[Action]:
    line = [Action(stage, "F", k) for k in range(warm_up)]
    for k in range(micro_steps):
        line.append(Action(stage, "B", k))
        if k + warm_up < micro_steps:
            line.append(Action(stage, "F", k + warm_up))
    return line
