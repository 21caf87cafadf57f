"""GPipe: all forwards, then all backwards."""

from __future__ import annotations

from fourfold.ir.schedule import Action, Schedule


def gpipe(ranks: int, micro_steps: int) -> Schedule:
    """Every micro-step forward, then every one backward: all of them are in flight at once.

    Bubble (p - 1) / (m + p - 1) at equal stages. Source: arXiv 1811.06965.
    """
    return Schedule.of(
        [[Action(rank, kind, k) for kind in ("F", "B") for k in range(micro_steps)] for rank in range(ranks)]
    )
