"""A global batch as `step` is given it: sequences that are there, or a source that is read by piece."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fourfold.backends.batch import lazy
from fourfold.backends.batch.agreement import agreed
from fourfold.backends.batch.lazy import Part
from fourfold.backends.batch.placing import Turn
from fourfold.backends.batch.sequences import Document, Limits
from fourfold.backends.communication.aside import Aside


@dataclass(frozen=True, slots=True)
class Whole:
    """Sequences that every rank holds."""

    held: tuple[Document, ...]

    @property
    def lengths(self) -> tuple[int, ...]:
        """Of its sequences."""
        return tuple(len(one) for one in self.held)

    @property
    def weight(self) -> float:
        """Of its supervised targets."""
        return float(sum(float(one.weights.double().sum()) for one in self.held))

    def documents(self, turns: Sequence[Turn]) -> Sequence[Document]:
        """By their place in the batch."""
        return self.held


@dataclass(frozen=True, slots=True)
class Read:
    """A source of which each rank reads what it runs."""

    source: lazy.Source
    lengths: tuple[int, ...]
    limits: Limits
    aside: Aside

    @property
    def weight(self) -> float:
        """Of its supervised targets, by the source's word."""
        return lazy.supervised(self.source)

    def documents(self, turns: Sequence[Turn]) -> Mapping[int, Part]:
        """What this rank runs, by its place in the batch. A collective: a read that fails, fails for all."""
        return lazy.parts(self.source, lazy.spans_of(turns), self.limits, self.aside)


def given(batch: Any, limits: Limits, aside: Aside) -> Whole | Read:
    """The batch, seen to be the same on every rank. A collective; raises UsageError and RunError on every rank."""
    if lazy.is_source(batch):
        return Read(batch, lazy.agreed_lengths(batch, limits, aside), limits, aside)
    return Whole(agreed(batch, limits, aside))
