"""Interleaved 1F1B: each rank holds `virtual` stages, and a micro-step passes every rank that many times."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from fourfold.ir.schedule import Action, Schedule


def interleaved(ranks: int, micro_steps: int, virtual: int = 2) -> Schedule:
    """1F1B in which rank r holds the stages r, r + p, ..., each round of micro-steps going once through all of them.

    A round has p micro-steps, or as many more as it takes to leave none over, the longer rounds first: none is then
    too short to cover the way back to the first rank, and none longer than what a rank has begun. Rank r begins with
    what lies ahead of its first backward: v - 1 rounds and 2 (p - r - 1) forwards more. Fewer than p are one round.
    Bubble over work (p - 1) / (v m) at equal stages and m >= p. Source: arXiv 2104.04473 section 2.2, for m a
    multiple of p.
    """
    rounds = _rounds(ranks, micro_steps)
    return Schedule.of([_line(rank, ranks, rounds, virtual) for rank in range(ranks)])


def _rounds(ranks: int, micro_steps: int) -> tuple[range, ...]:
    """The micro-steps of each round."""
    count = max(1, micro_steps // max(1, ranks))
    size, longer = divmod(micro_steps, count)
    ends = list(accumulate(size + (number < longer) for number in range(count)))
    return tuple(range(start, stop) for start, stop in zip([0, *ends], ends, strict=False))


def _line(rank: int, ranks: int, rounds: Sequence[range], virtual: int) -> list[Action]:
    stages = [rank + ranks * chunk for chunk in range(virtual)]
    forward = [Action(stage, "F", k) for steps in rounds for stage in stages for k in steps]
    backward = [Action(stage, "B", k) for steps in rounds for stage in reversed(stages) for k in steps]
    ahead = (virtual - 1) * len(rounds[0]) + 2 * (ranks - rank - 1)
    line = forward[:ahead]
    for begun, done in zip(forward[ahead:], backward, strict=False):
        line += [begun, done]
    return line + backward[max(0, len(forward) - ahead) :]
