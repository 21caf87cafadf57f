"""Micro-steps by ranks as a grid: what each cell runs, who waits for whom, and how late each rank is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from fourfold.ir.batch import Offload
from fourfold.passes.batch.placing.gangs import neighbours
from fourfold.passes.batch.timing.attentions import worth
from fourfold.passes.batch.timing.terms import Terms


@dataclass(frozen=True, slots=True)
class Option:
    """A way to run a sequence: on `ranks` neighbours, for `seconds`, with `tokens` on the fullest.

    filling: of these seconds, attention that fills waits of others on a rank alone, waits that are filled on several.
    """

    ranks: int
    seconds: float
    tokens: int
    filling: float = 0.0

    @property
    def work(self) -> float:
        """Seconds of all its ranks."""
        return self.ranks * self.seconds


@dataclass(frozen=True)
class Choice:
    """A batch and the ways to run each length: of no more seconds than `limit`, if more ranks spend little more work.

    spent: where given, there is one way, on the most ranks that spend no more than this share of the least work beside.
    """

    lengths: tuple[int, ...]
    terms: Terms
    limit: float
    spent: float | None = None
    known: dict[int, tuple[Option, ...]] = field(default_factory=dict, repr=False)

    @cached_property
    def of(self) -> dict[int, tuple[Option, ...]]:
        """Ways of each length, the fewest ranks first."""
        return {length: self._of(length) for length in dict.fromkeys(self.lengths)}

    @cached_property
    def order(self) -> list[int]:
        """Sequences in the order in which they are placed: those that are shared, each by the work of its ranks."""
        first = {length: (-(ways[0].ranks > 1), -ways[0].work) for length, ways in self.of.items()}
        return sorted(range(len(self.lengths)), key=lambda i: (first[self.lengths[i]], i))

    @cached_property
    def starts(self) -> dict[int, np.ndarray]:
        """First ranks of so many neighbours."""
        return {n: neighbours(n, self.terms) for n in {one.ranks for each in self.of.values() for one in each}}

    def _of(self, length: int) -> tuple[Option, ...]:
        if length not in self.known:
            self.known[length] = ways(length, self.terms)
        found = self.known[length]
        kept = [one for one in found if one.seconds <= self.limit] or found[-1:]
        if self.spent is None:
            return tuple(kept)
        least = min(one.work for one in kept)
        return (max((one for one in kept if one.work <= (1 + self.spent) * least), key=lambda one: one.ranks),)


def ways(length: int, terms: Terms) -> tuple[Option, ...]:
    """Ways of a length whatever the limit, the fewest ranks first: each takes less time, and not much more work."""
    found: list[Option] = []
    for n in worth(length, terms):
        one = option(length, n, terms)
        if found and (one.seconds >= found[-1].seconds or one.work > DEARER * found[0].work):
            break
        found.append(one)
    return tuple(found)


DEARER = 1.3
"""More work than on the fewest ranks that is still worth a shorter time."""


def option(length: int, ranks: int, terms: Terms) -> Option:
    """A sequence on so many neighbours: chunks differ by one token, which more documents even out."""
    seconds, method = terms.fastest(length, ranks)
    filling = terms.waits(length, ranks, method) if ranks > 1 else seconds
    tokens = length if ranks == 1 else -(-length // ranks) + 1
    return Option(ranks, terms.task(length, ranks), tokens, filling)


class Grid:
    """A placement being made: where each sequence runs, and what follows from it.

    own: seconds of each (micro-step, rank); spare: of them, waits beyond what fills them, or, below 0, attention beyond
    waits; top: of the slowest that it waits for; room: free tokens; ends: when each rank has done all; heights: of each
    micro-step where all ranks go in step (ZeRO 2 and 3). offloads: of cells that hold more than they have room for;
    what runs there stays. used: micro-steps up to the last in which something runs.
    """

    def __init__(self, choice: Choice, rounds: int) -> None:
        self.choice, self.terms = choice, choice.terms
        bounds, many = choice.terms.bounds, len(choice.lengths)
        self.in_step = bounds.zero > 1
        self.shape = rounds, bounds.ranks
        self.step, self.first, self.ranks = (np.full(many, -1) for _ in range(3))
        self.seconds, self.tokens, self.filling = np.zeros(many), np.zeros(many, dtype=int), np.zeros(many)
        self.offloads: tuple[Offload, ...] = ()
        self.rebuilt()

    def rebuilt(self) -> None:
        """All that follows, from where sequences are."""
        bounds, (rounds, ranks) = self.terms.bounds, self.shape
        self.own, self.room = np.zeros(self.shape), np.full(self.shape, bounds.capacity)
        self.label, waits, fills = np.tile(np.arange(ranks), (rounds, 1)), np.zeros(self.shape), np.zeros(self.shape)
        alone = np.flatnonzero((self.step >= 0) & (self.ranks == 1))
        np.add.at(self.own, (self.step[alone], self.first[alone]), self.seconds[alone])
        np.subtract.at(self.room, (self.step[alone], self.first[alone]), self.tokens[alone])
        np.add.at(fills, (self.step[alone], self.first[alone]), self.filling[alone])
        shared = np.flatnonzero((self.step >= 0) & (self.ranks > 1))
        windows, which = np.unique(
            np.stack([self.step[shared], self.first[shared], self.ranks[shared]]), axis=1, return_inverse=True
        )
        seconds = np.bincount(which.ravel(), self.seconds[shared], windows.shape[1])
        tokens = np.bincount(which.ravel(), self.tokens[shared], windows.shape[1]).astype(int)
        waiting = np.bincount(which.ravel(), self.filling[shared], windows.shape[1])
        for (step, first, n), more, held, wait in zip(
            windows.T.tolist(), seconds.tolist(), tokens.tolist(), waiting.tolist(), strict=True
        ):
            here = slice(first, first + n)
            self.own[step, here] += more
            self.room[step, here] -= held
            waits[step, here] += wait
            self._join(step, here)
        self.own[self.room < bounds.capacity] += self.terms.fixed
        self.own -= np.minimum(waits, fills)
        self.spare, self.used = waits - fills, int(self.step.max(initial=-1)) + 1
        self.settle()

    def cut(self) -> None:
        """Leaves out the micro-steps behind the last in which something runs."""
        self.shape = self.used, self.shape[1]
        self.rebuilt()

    def _join(self, step: int, here: slice) -> None:
        """Ranks that wait for each other are neighbours, labelled by the first: those of the first to the last here."""
        row = self.label[step]
        first, last = row[here.start], row[here.stop - 1]
        row[first : int(row.searchsorted(last, "right"))] = first

    def settle(self) -> None:
        """Who waits for whom, and when ranks end, from what cells run."""
        if self.in_step:
            self.heights = self.own.max(axis=1)
            return
        self.top, self.ends, every = self.own.copy(), np.zeros(self.shape[1]), np.arange(self.shape[1])
        for step in range(self.shape[0]):
            leads = self.label[step] == every
            if leads.all():
                self.ends += self.own[step]
                continue
            firsts, group = leads.nonzero()[0], leads.cumsum() - 1
            top, begun = (np.maximum.reduceat(each, firsts) for each in (self.own[step], self.ends))
            self.top[step], self.ends = top[group], (begun + top)[group]

    @property
    def makespan(self) -> float:
        """Seconds of the whole, as `timed` has them for one stage."""
        return float(self.heights.sum() if self.in_step else self.ends.max())

    def late(self) -> np.ndarray:
        """How late each cell is: behind the height of its micro-step, or from the start."""
        found: np.ndarray = self.own - self.heights[:, None] if self.in_step else self.ends - (self.top - self.own)
        return found

    def put(self, i: int, target: float) -> bool:
        """Places a sequence where and how it costs least beyond `target`; False where no way has room."""
        late, best = self.late(), None
        for way in self.choice.of[self.choice.lengths[i]]:
            found = self._least(late, way)
            if found is None:
                continue
            at, step, first = found
            beyond = max(0.0, at + way.seconds - target)
            cost = beyond * self.shape[1] + way.work
            if best is None or cost < best[0]:
                best = cost, step, first, way
            if beyond == 0.0:
                break
        if best is None:
            return False
        self.place(i, *best[1:])
        return True

    def _least(self, late: np.ndarray, way: Option) -> tuple[float, int, int] | None:
        """(how late, micro-step, first rank) of the neighbours that are least late, of those with room.

        Micro-steps in which nothing runs fill no waits: they are looked at only if one could be less late.
        """
        found = self._least_of(late[: self.used], way) if self.used else None
        if self.used == len(late) or (found is not None and found[0] <= late[self.used :].min()):
            return found
        return self._least_of(late, way)

    def _least_of(self, late: np.ndarray, way: Option) -> tuple[float, int, int] | None:
        """The same of the first micro-steps."""
        n, here = way.ranks, slice(len(late))
        late = np.where(self.room[here] >= way.tokens, late - self._filled(way, self.spare[here]), np.inf)
        starts = self.choice.starts[n] if n > 1 else None
        if starts is not None:
            late = widest(late, n)[:, starts]
        step, at = divmod(int(late.argmin()), late.shape[1])
        if late[step, at] == np.inf:
            return None
        return float(late[step, at]), step, at if starts is None else int(starts[at])

    def place(self, i: int, step: int, first: int, way: Option) -> None:
        """Puts a sequence there."""
        self.step[i], self.first[i], self.ranks[i] = step, first, way.ranks
        self.seconds[i], self.tokens[i], self.filling[i] = way.seconds, way.tokens, way.filling
        here = slice(first, first + way.ranks)
        before = self.own[step, here].copy()
        self.own[step, here] += way.seconds + self.terms.fixed * (self.room[step, here] == self.terms.bounds.capacity)
        self.own[step, here] -= self._filled(way, self.spare[step, here])
        self.spare[step, here] += way.filling if way.ranks > 1 else -way.filling
        self.room[step, here] -= way.tokens
        self.used = max(self.used, step + 1)
        if self.in_step:
            self.heights[step] = max(self.heights[step], self.own[step, here].max())
        elif way.ranks > 1:
            self._join(step, here)
            self.settle()
        else:
            self._lengthen(step, first, float(before[0]))

    def _filled(self, way: Option, spare: np.ndarray) -> np.ndarray:
        """Seconds that a sequence run this way takes less where it fills waits, or its waits are filled."""
        found: np.ndarray = np.minimum(way.filling, np.maximum(0.0, spare if way.ranks == 1 else -spare))
        return found

    def _lengthen(self, step: int, rank: int, before: float) -> None:
        """One rank runs longer: who waits for it does, too."""
        rise = self.own[step, rank] - self.top[step, rank]
        row = self.label[step]
        if row[rank] == rank and (rank + 1 == len(row) or row[rank + 1] != rank):
            self.top[step, rank] = self.own[step, rank]
            self.ends[rank] += self.own[step, rank] - before
        elif rise > 0:
            group = row == row[rank]
            self.top[step, group] += rise
            self.ends[group] += rise

    def remove(self, those: Iterable[int]) -> None:
        """Takes sequences out."""
        self.step[list(those)] = -1
        self.rebuilt()

    def movable(self, those: Iterable[int]) -> list[int]:
        """Those that do not run where something goes to the host's memory, each once."""
        found = sorted(set(those))
        if not self.offloads:
            return found
        kept = {(one.micro_step, one.rank) for one in self.offloads}
        cells = {i: {(int(self.step[i]), int(self.first[i]) + k) for k in range(self.ranks[i])} for i in found}
        return [i for i in found if not cells[i] & kept]

    def state(self) -> tuple[np.ndarray, ...]:
        """Where sequences are, to come back to."""
        parts = self.step, self.first, self.ranks, self.seconds, self.tokens, self.filling
        return tuple(part.copy() for part in parts)

    def restore(self, state: Sequence[np.ndarray]) -> None:
        """Back to a state."""
        self.step, self.first, self.ranks, self.seconds, self.tokens, self.filling = (part.copy() for part in state)
        self.rebuilt()


def widest(values: np.ndarray, n: int) -> np.ndarray:
    """The largest of each n neighbours along the last axis, by doubling."""
    found, width = values, 1
    while width < n:
        step = min(width, n - width)
        found = np.maximum(found[..., :-step], found[..., step:])
        width += step
    return found
