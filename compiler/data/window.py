"""Which sequences of a stream make the next batch: as they come, or with the long ones held back until they share one.

A batch with one very long sequence takes as long as that one does, on many ranks, while short ones beside it are soon
done; with several they share. Source: WLB-LLM's outlier delay (algorithm 1: queues by thresholds, let out when full);
where steps can be priced, ours: let out when they must be, with as many others as add least to the step for each token.
What it costs is the order: a short sequence comes in its turn, a long one later than it stood in the stream: at most
`patience` batches, and one for each that waited longer and leaves it no room. Each sequence still comes exactly once.
WLB-LLM takes the delay as the compromise, since packing over many batches raised its loss; here no loss was measured.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fourfold.hardware.errors import UsageError

Price = Callable[[tuple[int, ...]], float]
"""Seconds of a step over sequences of these lengths."""


@dataclass(frozen=True, slots=True)
class Delay:
    """How long sequences are held back; without thresholds, which is the default, none is.

    thresholds: ascending lengths; longer ones wait in the queue of the highest they exceed. together: how many of a
    queue are let out at once, where steps have no price. patience: batches after which one is let out whatever waits
    with it. most: sequences that wait in all; one more, and the oldest goes.
    """

    thresholds: tuple[int, ...] = ()
    together: int = 2
    patience: int = 8
    most: int = 64

    def __post_init__(self) -> None:
        if list(self.thresholds) != sorted(set(self.thresholds)) or min(self.together, self.patience, self.most) < 1:
            raise UsageError(f"{self}: thresholds ascend, and the rest are at least 1")

    def queue(self, length: int) -> int:
        """The thresholds it exceeds; 0 does not wait."""
        return sum(length > threshold for threshold in self.thresholds)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A sequence of the stream that is held back, since the batch with that number."""

    sequence: int
    since: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where a window is: sequences taken from the stream, batches made, and what waits, the oldest first."""

    taken: int = 0
    batches: int = 0
    waiting: tuple[Waiting, ...] = ()


class Window:
    """Batches of about `tokens` tokens from sequences whose lengths are `lengths`, in this order: their numbers in it.

    A batch holds no more tokens, unless it is one sequence. It follows from the lengths alone (and from `price`: the
    seconds of a step over such lengths), so every rank makes the same. A checkpoint takes it with
    `program.save(folder, window=window)`.
    """

    def __init__(
        self, lengths: Sequence[int], *, tokens: int, delay: Delay | None = None, price: Price | None = None
    ) -> None:
        self.lengths, self.tokens, self.delay, self.price = lengths, tokens, delay or Delay(), price
        self.place = Place()

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        """From where it is to the end of the stream."""
        while batch := self._next():
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Where it is, as plain values."""
        waiting = [[one.sequence, one.since] for one in self.place.waiting]
        stream = self._stream()
        return {"stream": stream, "taken": self.place.taken, "batches": self.place.batches, "waiting": waiting}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes to where another was over the same lengths. Raises UsageError for others."""
        if state["stream"] != self._stream():
            raise UsageError("this window was saved over other lengths, tokens a batch or delays")
        waiting = tuple(Waiting(int(sequence), int(since)) for sequence, since in state["waiting"])
        self.place = Place(int(state["taken"]), int(state["batches"]), waiting)

    def _stream(self) -> str:
        """What tells this stream, and how it is dealt, from others."""
        text = (
            repr((self.tokens, self.delay, self.price is None)).encode() + np.asarray(self.lengths, np.int64).tobytes()
        )
        return hashlib.sha256(text).hexdigest()[:16]

    def _next(self) -> tuple[int, ...]:
        """The next batch: what waited long enough, then what comes."""
        found = self._let_out()
        room = self.tokens - sum(int(self.lengths[i]) for i in found)
        while self.place.taken < len(self.lengths):
            number = self.place.taken
            queue = self.delay.queue(int(self.lengths[number]))
            full = len(self.place.waiting) >= self.delay.most
            chosen = self.place.waiting[0].sequence if queue and full else number
            if (not queue or full) and found and self.lengths[chosen] > room:
                break
            self._take(queue, full=full)
            if not queue or full:
                found.append(chosen)
                room -= int(self.lengths[chosen])
        if not found and self.place.waiting:
            found = self._fitting(self.place.waiting)
        self.place = replace(self.place, batches=self.place.batches + 1)
        return tuple(found)

    def _take(self, queue: int, *, full: bool) -> None:
        """The next of the stream is in this batch or waits; where too many do, the oldest makes place."""
        number, waiting = self.place.taken, self.place.waiting
        if queue:
            waiting = (*waiting[full:], Waiting(number, self.place.batches))
        self.place = replace(self.place, taken=number + 1, waiting=waiting)

    def _let_out(self) -> list[int]:
        """What no longer waits: first those whose patience is over, then whole queues or what is worth it."""
        now, waiting = self.place.batches, self.place.waiting
        over = tuple(one for one in waiting if now - one.since >= self.delay.patience)
        if waiting and not over and self.place.taken == len(self.lengths):
            over = waiting[:1] if self.price else waiting
        if self.price is None:
            return self._fitting((*over, *(one for one in self._full() if one not in over)))
        return self._fitting(self._worth(over, self.price)) if over else []

    def _full(self) -> list[Waiting]:
        """The oldest of each queue that has enough, the longest first. Source: WLB-LLM."""
        queues: list[list[Waiting]] = [[] for _ in range(len(self.delay.thresholds) + 1)]
        for one in self.place.waiting:
            queues[self.delay.queue(int(self.lengths[one.sequence]))].append(one)
        together = self.delay.together
        return [one for queue in reversed(queues) if len(queue) >= together for one in queue[:together]]

    def _worth(self, over: Sequence[Waiting], price: Price) -> Sequence[Waiting]:
        """Those that must go, and as many of the next oldest as add least to the step for each of their tokens."""
        order = (*over, *(one for one in self.place.waiting if one not in over))
        alone = price(short) if (short := self._short(self.tokens)) else 0.0
        best = (math.inf, len(over))
        for many in range(1, len(order) + 1):
            long = tuple(int(self.lengths[one.sequence]) for one in order[:many])
            if many > 1 and sum(long) > self.tokens:
                break
            if many >= len(over):
                more = price((*long, *self._short(self.tokens - sum(long)))) - alone
                best = min(best, (more / sum(long), many))
        return order[: best[1]]

    def _short(self, room: int) -> tuple[int, ...]:
        """Lengths of the next that do not wait, as far as there is room."""
        found: list[int] = []
        for number in range(self.place.taken, len(self.lengths)):
            length = int(self.lengths[number])
            if self.delay.queue(length):
                continue
            if length > room:
                break
            found.append(length)
            room -= length
        return tuple(found)

    def _fitting(self, wanted: Sequence[Waiting]) -> list[int]:
        """As many, in order, as one batch holds, at least one; they wait no more."""
        found: list[Waiting] = []
        room = self.tokens
        for one in wanted:
            length = int(self.lengths[one.sequence])
            if found and length > room:
                break
            found.append(one)
            room -= length
        left = tuple(one for one in self.place.waiting if one not in found)
        self.place = replace(self.place, waiting=left)
        return [one.sequence for one in found]
