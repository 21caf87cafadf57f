"""The placement of a batch on the rank that decides: one made ahead of time, a quick one, or one made on the spot."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fourfold.compiler.online.background import Background, LostSolverError
from fourfold.compiler.online.log import Replay, written
from fourfold.compiler.online.paces import ALPHA, Paces
from fourfold.hardware.errors import InfeasibleError, RunError, UsageError
from fourfold.ir.batch import BatchPlan
from fourfold.ir.batch_rules import complaints
from fourfold.passes.batch import POLICIES, Policy
from fourfold.passes.batch.placing.pacing import paced
from fourfold.passes.batch.timing.terms import Terms

KEPT = 64
"""Batches whose placements are remembered: one of the same lengths is not solved again."""
ORIGINS = ("ahead", "waited", "late", "unhinted", "lost", "replayed")
"""Where a placement came from: ready when needed; waited for; a quick one as the hinted one was late; made on the spot
as nobody hinted; made without the background process as that died; the log of another run."""

Lengths = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Online:
    """How batches are placed while training.

    policy: a name in POLICIES, or a function of (lengths, terms) in a module that can be imported. quick: the one that
    stands in where that is late. deterministic: a placement follows from lengths alone; the step waits for the solver,
    and paces are not looked at. processes: that solve in the background. log: a file to which every placement is
    appended. replay: such a file, whose placements are used again. alpha: weight of the newest step in a rank's pace.
    """

    policy: str | Policy = "auto"
    quick: str | Policy = "bytescale"
    deterministic: bool = False
    processes: int = 1
    log: str | Path | None = None
    replay: str | Path | None = None
    alpha: float = ALPHA


class Chooser:
    """Chooses placements in one process, with others in the background. `terms` is asked once, when first needed."""

    def __init__(self, online: Online, terms: Callable[[], Terms]) -> None:
        self.online = online
        self.policy, self.quick = named(online.policy), named(online.quick)
        self._terms = terms
        self._known: OrderedDict[Lengths, Future[BatchPlan]] = OrderedDict()
        self._warned = False

    def ahead(self, lengths: Lengths) -> None:
        """Has a batch to come placed in the background. Raises nothing: what fails is said when it is needed."""
        if self.online.replay is not None or lengths in self._known:
            return
        try:
            self._remember(lengths, self.background.ask(lengths))
        except Exception as error:
            failed: Future[BatchPlan] = Future()
            failed.set_exception(LostSolverError(f"nothing is placed in the background: {error}"))
            self._remember(lengths, failed)

    def used(self, lengths: Lengths, step: int) -> tuple[BatchPlan, str]:
        """The placement to use, and its origin; logged.

        Raises InfeasibleError, UsageError for a replay that does not fit, RunError for a policy that breaks a rule.
        """
        batch, origin = self._chosen(lengths, step)
        if not self.online.deterministic and origin != "replayed":
            batch = paced(batch, self.terms, self.paces.values)
        wrong = complaints(batch, self.terms.bounds)
        if wrong:
            kind = UsageError if origin == "replayed" else RunError
            raise kind(f"the placement of step {step} by {batch.policy} ({origin}) does not fit this plan: {wrong[0]}")
        if self.online.log is not None:
            written(Path(self.online.log), batch, step=step, origin=origin)
        return batch, origin

    def close(self) -> None:
        """Ends the background processes, which a further hint starts again; they end with this one, too."""
        if "background" in self.__dict__:
            self.__dict__.pop("background").close()

    @cached_property
    def terms(self) -> Terms:
        """What placements are priced by."""
        return self._terms()

    @cached_property
    def background(self) -> Background:
        """The processes, from the first hint on."""
        return Background(self.policy, self.terms, processes=self.online.processes)

    @cached_property
    def paces(self) -> Paces:
        """Of the ranks of the pool: even until something is learnt."""
        return Paces.even(self.terms.bounds.ranks, self.online.alpha)

    @cached_property
    def _replay(self) -> Replay | None:
        return None if self.online.replay is None else Replay.read(Path(self.online.replay))

    def _chosen(self, lengths: Lengths, step: int) -> tuple[BatchPlan, str]:
        if self._replay is not None:
            return self._replay.of(step, lengths), "replayed"
        future = self._known.get(lengths)
        if future is None:
            return self._now(lengths), "unhinted"
        ready = future.done()
        quick = None if ready or self.online.deterministic else self._quick(lengths)
        if quick is not None:
            return quick, "late"
        try:
            return future.result(), "ahead" if ready else "waited"
        except LostSolverError as error:
            self._warn(error)
            del self._known[lengths]
        found = None if self.online.deterministic else self._quick(lengths)
        return found or self._now(lengths), "lost"

    def _quick(self, lengths: Lengths) -> BatchPlan | None:
        """The quick policy's placement, if it has one."""
        try:
            return self.quick(lengths, self.terms)
        except InfeasibleError:
            return None

    def _now(self, lengths: Lengths) -> BatchPlan:
        """By the policy itself, in this process."""
        future: Future[BatchPlan] = Future()
        future.set_result(self.policy(lengths, self.terms))
        self._remember(lengths, future)
        return future.result()

    def _remember(self, lengths: Lengths, future: Future[BatchPlan]) -> None:
        self._known[lengths] = future
        while len(self._known) > KEPT:
            self._known.popitem(last=False)

    def _warn(self, error: LostSolverError) -> None:
        if not self._warned:
            warnings.warn(f"{error}; batches are placed without it (said once)", RuntimeWarning, stacklevel=2)
        self._warned = True


def named(policy: str | Policy) -> Policy:
    """The policy of that name. Raises UsageError."""
    if not isinstance(policy, str):
        return policy
    if policy not in POLICIES:
        raise UsageError(f"policy {policy!r} is not known; give one of {', '.join(POLICIES)}")
    return POLICIES[policy]
