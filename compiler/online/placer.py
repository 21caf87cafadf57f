"""What a program asks where the tokens of a batch run: decided on rank 0, told to all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property, partial

from fourfold.backends.communication.aside import Aside
from fourfold.compiler.online import telling
from fourfold.compiler.online.choosing import ORIGINS, Chooser, Online
from fourfold.compiler.schedules import ordered
from fourfold.hardware.errors import FourfoldError, RunError
from fourfold.ir.batch import BatchPlan
from fourfold.ir.plan import Plan
from fourfold.ir.schedule import Schedule
from fourfold.passes.batch.timing.planned import terms_of


class Placer:
    """Placements of the batches of one program. `place` and `learn` are collectives.

    `counts` has, on every rank, how many placements came from where (ORIGINS). orders: what a rank runs of one.
    """

    def __init__(self, chooser: Chooser, orders: Callable[[BatchPlan, int], Schedule]) -> None:
        self.chooser, self.orders = chooser, orders
        self.counts: Counter[str] = Counter(dict.fromkeys(ORIGINS, 0))
        self.placed = 0

    @classmethod
    def of(cls, plan: Plan, online: Online | None = None) -> Placer:
        """For a static plan, whose terms rank 0 works out when they are first needed. Raises UsageError."""
        return cls(Chooser(online or Online(), lambda: terms_of(plan)), partial(ordered, plan))

    def ahead(self, lengths: Sequence[int]) -> None:
        """A hint of a batch to come: rank 0 has it placed in the background, the others pass over it."""
        if self.aside.rank == 0:
            self.chooser.ahead(tuple(lengths))

    def place(self, lengths: Sequence[int], step: int | None = None) -> BatchPlan:
        """The placement of a batch, the same on every rank.

        step: its number in the log; by itself, how many were placed before. Raises, on every rank, InfeasibleError,
        UsageError for a replay that does not fit, RunError for a policy that fails or breaks a rule.
        """
        number = self.placed if step is None else step
        if self.aside.rank == 0:
            batch, origin = self._told(tuple(lengths), number)
        else:
            batch, origin = telling.opened(self.aside.told(None))
        self.placed = number + 1
        self.counts[origin] += 1
        return batch

    def schedule(self, batch: BatchPlan, rank: int) -> Schedule:
        """The order in which the line of stages of a rank of the pool runs its micro-steps.

        Raises UsageError for chunks where a rank holds several stages.
        """
        return self.orders(batch, rank)

    def learn(self, rank: int, seconds: float, tokens: int) -> None:
        """Takes note of the seconds that work which waits for no one took this process, at `rank` in the pool.

        Of several processes at one place, the slowest counts. Placements that follow from lengths alone learn nothing.
        """
        if self.chooser.online.deterministic or self.chooser.online.replay is not None:
            return
        rows = self.aside.gathered((rank, round(seconds * 1e9), tokens))
        if self.aside.rank != 0 or not any(nanoseconds for _, nanoseconds, _ in rows):
            return
        places = self.chooser.terms.bounds.ranks
        measured, work = [0.0] * places, [0.0] * places
        for where, nanoseconds, many in rows:
            if many and nanoseconds / many > (measured[where] / work[where] if work[where] else 0.0):
                measured[where], work[where] = float(nanoseconds), float(many)
        self.chooser.paces = self.chooser.paces.after(measured, work)

    def close(self) -> None:
        """Ends the background processes; they end with this one, too."""
        self.chooser.close()

    @cached_property
    def aside(self) -> Aside:
        """How ranks talk without waiting for kernels, once they are joined."""
        return Aside.here()

    def _told(self, lengths: tuple[int, ...], step: int) -> tuple[BatchPlan, str]:
        """On rank 0: the placement, or its error, after the others were told."""
        try:
            batch, origin = self.chooser.used(lengths, step)
        except FourfoldError as error:
            self.aside.told(telling.refusal(error))
            raise
        except Exception as error:
            # The others wait: whatever it is, they are told.
            said = RunError(f"step {step} cannot be placed: {type(error).__name__}: {error}")
            self.aside.told(telling.refusal(said))
            raise said from error
        self.aside.told(telling.placement(batch, origin))
        return batch, origin
