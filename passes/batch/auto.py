"""The fastest placement found: degree, method and place of each sequence at once, short ones beside long ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fourfold.hardware.errors import InfeasibleError
from fourfold.ir.batch import BatchPlan, Piece
from fourfold.passes.batch.bytescale import bytescale
from fourfold.passes.batch.gangs import neighbours
from fourfold.passes.batch.pack import pack
from fourfold.passes.batch.refusal import require
from fourfold.passes.batch.static_cp import homogeneous
from fourfold.passes.batch.terms import Terms
from fourfold.passes.batch.timing import bound, timed, worth
from fourfold.passes.batch.zeppelin import zeppelin

SPENT = (0.0, 0.02, 0.05, 0.1, 0.25)
"""More work of all ranks than a sequence's least, spent on more ranks: they take it a shorter time."""
STARTS = (pack, homogeneous, bytescale, zeppelin)
"""Policies whose placement it is never slower than."""
CLOSE = 0.01
"""A gap to the bound at which nothing more is tried."""


def auto(lengths: Sequence[int], terms: Terms) -> BatchPlan:
    """The fastest of many placements, which differ in how many ranks a sequence gets, in rounds and in order.

    A sequence gets the most ranks that cost little more, in all, than the cheapest number; then each goes where it
    delays least, short ones beside long ones in the same micro-steps. Raises InfeasibleError for what the pool cannot
    hold.
    """
    require(lengths, terms.bounds.ranks, terms, policy="auto")
    least = bound(lengths, terms)
    best: tuple[float, BatchPlan] | None = None
    for batch in _tried(lengths, terms, least):
        seconds = timed(batch, terms).seconds
        if best is None or seconds < best[0]:
            best = seconds, batch
        if best[0] <= (1 + CLOSE) * (least + terms.once):
            break
    assert best is not None
    return replace(best[1], policy="auto")


def _tried(lengths: Sequence[int], terms: Terms, least: float) -> Iterator[BatchPlan]:
    rounds = -(-sum(lengths) // (terms.bounds.ranks * terms.bounds.capacity))
    for chosen in _choices(lengths, terms, least):
        for count in (rounds, rounds + 1):
            for widest in (True, False):
                found = _placed(lengths, chosen, terms, count, widest=widest)
                if found is not None:
                    yield found
    for start in STARTS:
        try:
            yield start(lengths, terms)
        except InfeasibleError:
            continue


def _choices(lengths: Sequence[int], terms: Terms, limit: float) -> Iterator[Mapping[int, int]]:
    """Ranks of each length by how much may be spent, each choice once."""
    seen: list[Mapping[int, int]] = []
    for spent in SPENT:
        chosen = _degrees(lengths, terms, spent=spent, limit=limit)
        if chosen not in seen:
            seen.append(chosen)
            yield chosen


def _degrees(lengths: Sequence[int], terms: Terms, *, spent: float, limit: float) -> Mapping[int, int]:
    """Ranks of each length: the most whose work in all is little above the least, of those that keep the limit."""
    found = {}
    for length in set(lengths):
        times = [(terms.task(length, n), n) for n in worth(length, terms)]
        kept = [one for one in times if one[0] <= limit] or [min(times)]
        least = min(n * seconds for seconds, n in kept)
        found[length] = max(n for seconds, n in kept if n * seconds <= (1 + spent) * least)
    return found


def _placed(
    lengths: Sequence[int], ranks: Mapping[int, int], terms: Terms, rounds: int, *, widest: bool
) -> BatchPlan | None:
    """Each where it delays least, the slowest first or the widest; None where there is no room."""
    cells = Cells.empty(terms, rounds)
    starts = {n: neighbours(n, terms) for n in set(ranks.values())}
    found = []
    seconds = {length: terms.task(length, ranks[length]) for length in ranks}
    for i in sorted(range(len(lengths)), key=lambda i: (-widest * ranks[lengths[i]], -seconds[lengths[i]])):
        length, n = lengths[i], ranks[lengths[i]]
        where = cells.take(_share(length, n), seconds[length], starts[n], n)
        if where is None:
            return None
        step, first = where
        found.append(Piece(i, 0, length, step, tuple(range(first, first + n)), terms.fastest(length, n)[1]))
    return _closed(BatchPlan("auto", tuple(lengths), terms.bounds.ranks, terms.bounds.capacity, tuple(found)))


def _share(length: int, ranks: int) -> int:
    """Tokens of the fullest of `ranks` ranks: as chunks differ by one, more documents even out."""
    return length if ranks == 1 else -(-length // ranks) + 1


def _closed(batch: BatchPlan) -> BatchPlan:
    """Without micro-steps that nobody runs."""
    used = {step: at for at, step in enumerate(sorted({piece.micro_step for piece in batch.pieces}))}
    return replace(batch, pieces=tuple(replace(piece, micro_step=used[piece.micro_step]) for piece in batch.pieces))


@dataclass(frozen=True, slots=True)
class Cells:
    """Seconds and free tokens of every (micro-step, rank), and how late each is: behind the slowest rank of its
    micro-step where all go in step (ZeRO 2 and 3), else by the rank's whole time."""

    load: np.ndarray
    room: np.ndarray
    late: np.ndarray
    in_step: bool

    @classmethod
    def empty(cls, terms: Terms, rounds: int) -> Cells:
        """So many micro-steps of the whole pool."""
        shape = rounds, terms.bounds.ranks
        free = np.full(shape, terms.bounds.capacity)
        return cls(np.zeros(shape), free, np.zeros(shape), terms.bounds.zero > 1)

    def take(self, tokens: int, seconds: float, starts: np.ndarray, ranks: int) -> tuple[int, int] | None:
        """(micro-step, first rank) where so many tokens on each of `ranks` neighbours delay least, now taken.

        None where no neighbours have the room.
        """
        late = np.where(self.room >= tokens, self.late, np.inf)
        if ranks > 1:
            late = np.lib.stride_tricks.sliding_window_view(late, ranks, axis=1).max(axis=2)[:, starts]
        step, at = divmod(int(late.argmin()), late.shape[1])
        if late[step, at] == np.inf:
            return None
        first = int(starts[at])
        self._add(step, slice(first, first + ranks), tokens, seconds)
        return step, first

    def _add(self, step: int, here: slice, tokens: int, seconds: float) -> None:
        """Neighbours begin together, when the last of them can."""
        before = self.load[step, here].copy()
        self.load[step, here] = before.max() + seconds
        self.room[step, here] -= tokens
        if self.in_step:
            self.late[step] = self.load[step] - self.load[step].max()
        else:
            self.late[:, here] += self.load[step, here] - before
