"""The order of chunks made by a solver: for small pipelines whose micro-steps differ in length."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from ortools.sat.python import cp_model

from fourfold.hardware.errors import InfeasibleError
from fourfold.ir.schedule import Action, Schedule
from fourfold.passes.schedule.solver import TICKS, Solved
from fourfold.passes.schedule.state_aware import dropped, state_aware
from fourfold.passes.schedule.timing import in_flight, timed

Lasts = Callable[[int, str, int], float]
"""Seconds of stage, kind (N, F or B) and micro-step."""


def ordered(
    ranks: int,
    chains: Sequence[Sequence[int]],
    lasts: Lasts,
    *,
    retained: int,
    send: float = 0.0,
    effort: float = 20.0,
) -> Solved:
    """The fastest order of chunks that CP-SAT finds, one stage a rank, in the memory that state-aware 1F1B takes.

    Decides: when each forward, forward again and backward of each micro-step runs. Given: what `state_aware` is given,
    seconds, and seconds `send` of a message. Minimises: the end of the last action.
    Subject to: one action at a time on a rank; forwards from stage to stage and backwards back, `send` later; on a
    stage the chunks of a chain forward in order and backward in reverse; a forward again after the first, a backward
    after the forward that is kept; from that to the backward's end at most as many at once as state-aware 1F1B has;
    what the keys of several sequences take is not bounded.
    `effort` is deterministic time: the same call gives the same schedule. Never slower than state-aware 1F1B.
    Raises ScheduleError as that does, InfeasibleError where effort ends before anything is found.
    """
    start = state_aware(ranks, chains, retained)
    begun = timed(start, lasts, send=send)
    actions = [action for line in start.lines for action in line]
    tick = max(max(lasts(a.stage, a.kind, a.micro_step) for a in actions) / TICKS, 1e-30)
    ticks = {a: max(1, int(lasts(a.stage, a.kind, a.micro_step) / tick)) for a in actions}
    model = _Model(ticks, int(send / tick), dropped(chains, retained))
    model.build(chains, in_flight(start))
    model.hint(start)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.max_deterministic_time = effort
    if solver.solve(model.model) not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        raise InfeasibleError(f"no order of {len(actions)} actions was found within effort={effort}: give it more")
    found = timed(model.schedule(solver), lasts, send=send)
    best = begun if begun.makespan <= found.makespan else found
    # An action shorter than a unit was given one: the bound may owe it that.
    short = sum(lasts(a.stage, a.kind, a.micro_step) < tick for a in actions) * tick
    return Solved(best.schedule, best.makespan, max(0.0, solver.best_objective_bound * tick - short))


@dataclass(slots=True)
class _Model:
    """The CP-SAT model and its variables; `ticks` are units of time by action."""

    ticks: Mapping[Action, int]
    lag: int
    again: frozenset[int]
    model: cp_model.CpModel = field(default_factory=cp_model.CpModel)
    starts: dict[Action, cp_model.IntVar] = field(default_factory=dict)

    def build(self, chains: Sequence[Sequence[int]], memory: Sequence[int]) -> None:
        """All variables and constraints. The horizon is everything one after the other."""
        horizon = sum(self.ticks.values()) + 2 * len(self.ticks) * self.lag
        last = self.model.new_int_var(0, horizon, "makespan")
        for action in self.ticks:
            self.starts[action] = self.model.new_int_var(0, horizon, str(action))
            self.model.add(self._end(action) <= last)
        for stage, room in enumerate(memory):
            self._rank(stage, room, horizon)
            for chain in chains:
                self._chain(stage, chain)
                for step in chain:
                    self._needs(stage, step, len(memory))
        self.model.minimize(last)

    def hint(self, schedule: Schedule) -> None:
        """Where the search begins, in the model's own units so that starts fit each other."""
        known = timed(schedule, lambda s, kind, k: float(self.ticks[Action(s, kind, k)]), send=float(self.lag))
        for action, when in zip(known.graph.actions, known.start, strict=True):
            self.model.add_hint(self.starts[action], round(when))

    def schedule(self, solver: cp_model.CpSolver) -> Schedule:
        """The actions of each rank in the order of their starts."""
        lines: dict[int, list[Action]] = {}
        for action in sorted(self.starts, key=lambda a: solver.value(self.starts[a])):
            lines.setdefault(action.stage, []).append(action)
        return Schedule.of([lines[stage] for stage in sorted(lines)])

    def _rank(self, stage: int, room: int, horizon: int) -> None:
        """One action at a time, and no more kept at once than there is room for."""
        mine = [action for action in self.starts if action.stage == stage]
        self.model.add_no_overlap(
            [self.model.new_fixed_size_interval_var(self.starts[a], self.ticks[a], str(a)) for a in mine]
        )
        kept = []
        for action in mine:
            if action.kind == "F":
                end = self._end(Action(stage, "B", action.micro_step))
                size = self.model.new_int_var(0, horizon, f"{action} lasts")
                kept.append(self.model.new_interval_var(self.starts[action], size, end, f"{action} kept"))
        self.model.add_cumulative(kept, [1] * len(kept), room)

    def _chain(self, stage: int, chain: Sequence[int]) -> None:
        """Keys go forward along it, their gradients back."""
        for step, later in pairwise(chain):
            self._after(self._first(stage, later), self._first(stage, step), 0)
            self._after(Action(stage, "B", step), Action(stage, "B", later), 0)

    def _needs(self, stage: int, step: int, stages: int) -> None:
        """Forward before backward, and from stage to stage."""
        kept, back = Action(stage, "F", step), Action(stage, "B", step)
        self._after(back, kept, 0)
        if step in self.again:
            self._after(kept, self._first(stage, step), 0)
        if stage + 1 < stages:
            self._after(self._first(stage + 1, step), self._first(stage, step), self.lag)
            self._after(back, Action(stage + 1, "B", step), self.lag)

    def _first(self, stage: int, step: int) -> Action:
        return Action(stage, "N" if step in self.again else "F", step)

    def _after(self, action: Action, before: Action, lag: int) -> None:
        self.model.add(self.starts[action] >= self._end(before) + lag)

    def _end(self, action: Action) -> cp_model.LinearExpr:
        return self.starts[action] + self.ticks[action]
