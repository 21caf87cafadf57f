"""How fast ranks turn out to be: seconds measured over seconds predicted, smoothed over steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

ALPHA = 0.1
"""Weight of the newest step: a rank that turns slow is known to two thirds after ten."""


@dataclass(frozen=True, slots=True)
class Paces:
    """For each rank of the pool a factor on predicted seconds, against the mean of all: 1.1 takes a tenth longer.

    Equal FLOPs still differ by several percent in time from device to device. Source: exponentially weighted moving
    average, value' = (1 - alpha) value + alpha measured.
    """

    values: tuple[float, ...]
    alpha: float = ALPHA

    @classmethod
    def even(cls, ranks: int, alpha: float = ALPHA) -> Paces:
        """Before anything is known."""
        return cls((1.0,) * ranks, alpha)

    def after(self, measured: Sequence[float], predicted: Sequence[float]) -> Paces:
        """With one more step, in seconds a rank; one that had nothing to do stays as it is.

        What all ranks miss the prediction by is no one's pace, so ratios are taken against their mean.
        """
        pairs = enumerate(zip(measured, predicted, strict=True))
        ratios = {rank: seen / told for rank, (seen, told) in pairs if seen > 0 and told > 0}
        if not ratios:
            return self
        mean = sum(ratios.values()) / len(ratios)
        found = list(self.values)
        for rank, ratio in ratios.items():
            found[rank] += self.alpha * (ratio / mean - found[rank])
        return replace(self, values=tuple(found))
