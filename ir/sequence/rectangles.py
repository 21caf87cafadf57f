"""What a rank's queries see of another rank's keys, as rectangles that kernels know: full, causal squares, bands."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeVar

from fourfold.ir.sequence.tokens import Run, Shard

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Softmax:
    """How scores become weights: p = softmax(scale * q k) over the visible keys of the query's own document.

    causal: key j is visible to query i only if j <= i; window: only if j > i - window (so a window of 1 sees only
    itself under `causal`), None for no bound. Positions count from the start of the document.
    """

    scale: float
    causal: bool
    window: int | None = None


@dataclass(frozen=True, slots=True)
class Rectangle:
    """Rows q_at.. of the queries against rows k_at.. of the keys, as stored.

    Query row i sees key row j if j <= i + high (None: no bound) and j > i + low (None: no bound).
    """

    q_at: int
    q_count: int
    k_at: int
    k_count: int
    high: int | None = None
    low: int | None = None

    @property
    def full(self) -> bool:
        """Whether every row sees every key."""
        return self.high is None and self.low is None

    @property
    def square(self) -> bool:
        """Whether it is the causal square, without a window."""
        return self.high == 0 and self.low is None and self.q_count == self.k_count

    @property
    def pairs(self) -> int:
        """Visible (query, key) pairs."""
        if self.full:
            return self.q_count * self.k_count
        if self.square:
            return self.q_count * (self.q_count + 1) // 2
        return sum(self._seen(i) for i in range(self.q_count))

    @property
    def rows(self) -> tuple[int, int]:
        """The first stored row of the queries that sees a key, and the one past the last."""
        first = 0 if self.high is None else max(0, -self.high)
        past = self.q_count if self.low is None else min(self.q_count, self.k_count - 1 - self.low)
        return self.q_at + first, self.q_at + max(first, past)

    def _seen(self, i: int) -> int:
        last = self.k_count - 1 if self.high is None else min(self.k_count - 1, i + self.high)
        first = 0 if self.low is None else max(0, i + self.low + 1)
        return max(0, last - first + 1)


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What the queries of a micro-step see of some keys, and what kernels make of it, once for all layers.

    `made` lives as long as the step; two of the same rectangles are not the same, so that nothing long is hashed.
    """

    rectangles: tuple[Rectangle, ...]
    made: dict[Hashable, object] = field(default_factory=dict, repr=False)

    def __iter__(self) -> Iterator[Rectangle]:
        return iter(self.rectangles)

    def __len__(self) -> int:
        return len(self.rectangles)

    def __getitem__(self, at: int) -> Rectangle:
        return self.rectangles[at]

    def once(self, name: Hashable, make: Callable[[], T]) -> T:
        """What `make` gives, asked the first time."""
        return once(self.made, name, make)


def once(made: dict[Hashable, object], name: Hashable, make: Callable[[], T]) -> T:
    """What is kept under a name, which says of what kind it is; made where it is not there yet."""
    if name not in made:
        made[name] = make()
    found: T = made[name]  # type: ignore[assignment]
    return found


@lru_cache(maxsize=4096)
def rectangles(queries: Shard, keys: Shard, softmax: Softmax) -> tuple[Rectangle, ...]:
    """All that the queries see of the keys, each pair once; rectangles that join are joined."""
    known = keys.by_document
    found: list[Rectangle] = []
    for document, own in queries.by_document.items():
        runs = known.get(document, ())
        rows = [r for q in own for k in runs for r in _between(q, k, softmax)]
        found += _joined(rows)
    return tuple(found)


def _between(q: Run, k: Run, softmax: Softmax) -> Iterator[Rectangle]:
    """What one run sees of another: at most three rectangles without a window."""
    if k.count == 1:
        k = Run(k.document, k.start, 1, q.step, k.at)
    if softmax.window is not None:
        yield from _banded(q, k, softmax)
    elif not softmax.causal:
        yield Rectangle(q.at, q.count, k.at, k.count)
    elif q.step == k.step:
        yield from _staircase(q, k, (q.start - k.start) // q.step)
    else:
        yield from (
            r for i in range(q.count) for r in _staircase(_row(q, i, k), k, (q.start + i * q.step - k.start) // k.step)
        )


def _row(q: Run, i: int, k: Run) -> Run:
    """One token of a run, as a run of the step of `k`."""
    return Run(q.document, q.start + i * q.step, 1, k.step, q.at + i)


def _staircase(q: Run, k: Run, shift: int) -> Iterator[Rectangle]:
    """Row i sees columns j <= i + shift, as full rectangles and a causal square."""
    before = min(max(shift, 0), k.count)
    if before:
        yield Rectangle(q.at, q.count, k.at, before)
    # The first row that sees column `before`, and how far the diagonal goes from there.
    first = max(0, before - shift)
    side = min(q.count - first, k.count - before)
    if side <= 0:
        return
    yield Rectangle(q.at + first, side, k.at + before, side, high=0)
    below = q.count - first - side
    if below:
        yield Rectangle(q.at + first + side, below, k.at + before, side)


def _banded(q: Run, k: Run, softmax: Softmax) -> Iterator[Rectangle]:
    """A window, and the causal bound where there is one, as a band; row by row where steps differ."""
    assert softmax.window is not None
    if q.step != k.step:
        for i in range(q.count):
            yield from _banded(_row(q, i, k), k, softmax)
        return
    high = (q.start - k.start) // k.step if softmax.causal else None
    low = (q.start - k.start - softmax.window) // k.step
    high = None if high is not None and high >= k.count - 1 else high
    band_low = None if low + q.count - 1 < 0 else low
    rectangle = Rectangle(q.at, q.count, k.at, k.count, high, band_low)
    if any(rectangle._seen(i) for i in (0, q.count - 1)) or rectangle.pairs:
        yield rectangle


def _joined(rows: Iterable[Rectangle]) -> list[Rectangle]:
    """The same pairs in fewer rectangles: neighbours of one side, and squares with the full one between them."""
    found = list(rows)
    while len(found) > 1:
        pair = next(((a, b, c) for a in found for b in found if a is not b and (c := _union(a, b)) is not None), None)
        if pair is None:
            corner = _corner(found)
            if corner is None:
                break
            found = corner
            continue
        found = [r for r in found if r is not pair[0] and r is not pair[1]] + [pair[2]]
    return found


def _union(a: Rectangle, b: Rectangle) -> Rectangle | None:
    """Two full neighbours as one; None where they are none."""
    if not (a.full and b.full):
        return None
    if (a.q_at, a.q_count) == (b.q_at, b.q_count) and a.k_at + a.k_count == b.k_at:
        return Rectangle(a.q_at, a.q_count, a.k_at, a.k_count + b.k_count)
    if (a.k_at, a.k_count) == (b.k_at, b.k_count) and a.q_at + a.q_count == b.q_at:
        return Rectangle(a.q_at, a.q_count + b.q_count, a.k_at, a.k_count)
    return None


def _corner(found: list[Rectangle]) -> list[Rectangle] | None:
    """Two causal squares and the full rectangle below the first, as one square; None where there are none."""
    full = {(r.q_at, r.q_count, r.k_at, r.k_count): r for r in found if r.full}
    squares = [r for r in found if r.square]
    for a in squares:
        for b in squares:
            if (b.q_at, b.k_at) != (a.q_at + a.q_count, a.k_at + a.k_count):
                continue
            between = full.get((b.q_at, b.q_count, a.k_at, a.k_count))
            if between is not None:
                whole = Rectangle(a.q_at, a.q_count + b.q_count, a.k_at, a.k_count + b.k_count, high=0)
                return [r for r in found if r is not a and r is not b and r is not between] + [whole]
    return None
