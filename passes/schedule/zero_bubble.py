"""Zero-bubble: the backward split in two, so that the weights' half fills what would be a bubble."""

from __future__ import annotations

from fourfold.ir.schedule import Action, Schedule


def zero_bubble(ranks: int, micro_steps: int) -> Schedule:
    """1F1B in which I goes on to the stage before at once and the W of rank r comes r micro-steps later.

    No rank holds more than p micro-steps, as many as the first of 1F1B: rank r has begun p - r when its first I
    comes, and owes r Ws. Bubble of a rank (p - 1) (F + I - W) at equal stages, many micro-steps and I >= W, where 1F1B
    has (p - 1) (F + I + W). Source: arXiv 2401.10241 section 2.1 (ZB-H1).
    """
    return Schedule.of([_line(rank, ranks - rank, micro_steps) for rank in range(ranks)])


def _line(stage: int, warm_up: int, micro_steps: int) -> list[Action]:
    line = [Action(stage, "F", k) for k in range(min(warm_up, micro_steps))]
    for k in range(micro_steps):
        line.append(Action(stage, "I", k))
        if k >= stage:
            line.append(Action(stage, "W", k - stage))
        if k + warm_up < micro_steps:
            line.append(Action(stage, "F", k + warm_up))
    return line + [Action(stage, "W", k) for k in range(max(0, micro_steps - stage), micro_steps)]
