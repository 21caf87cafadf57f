"""A schedule made by a solver: for small pipelines whose stages differ, under a bound of what is in flight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ortools.sat.python import cp_model

from fourfold.hardware.errors import InfeasibleError, UsageError
from fourfold.ir.schedule import Action, Schedule
from fourfold.passes.schedule.one_f_one_b import one_f_one_b
from fourfold.passes.schedule.timing import timed
from fourfold.passes.schedule.zero_bubble import zero_bubble

TICKS = 2**20
"""Whole units of time the longest action is divided into; durations are rounded down, so that bounds hold."""


@dataclass(frozen=True, slots=True)
class Solved:
    """A schedule, the seconds it takes, and seconds that no schedule within the same memory can go below."""

    schedule: Schedule
    seconds: float
    bound: float

    @property
    def gap(self) -> float:
        """How much of its time a better schedule could save at most; 0 for one that is the best."""
        return max(0.0, 1.0 - self.bound / self.seconds)


def solved(
    durations: Mapping[tuple[int, str], float],
    micro_steps: int,
    *,
    memory: Sequence[int],
    send: float = 0.0,
    effort: float = 20.0,
    near: float = 0.0,
) -> Solved:
    """The fastest schedule of one stage a rank that CP-SAT finds, micro-steps being alike.

    Decides: when each F and B (or I and W, if durations name them) of each micro-step runs.
    Given: seconds by (stage, kind), seconds `send` of a message, `memory` micro-steps a stage may hold.
    Minimises: the end of the last action.
    Subject to: one action at a time on a rank; F after the F before it, I or B after the one behind it, `send` later;
    W after I; from F to the end of B or W at most memory[stage] micro-steps at once; micro-steps in order on a stage,
    which loses nothing as they are alike. Starts from 1F1B, or zero-bubble where the backward is split.
    `effort` is deterministic time, so that the same call gives the same schedule; a gap of `near` ends it, too. Never
    slower than where it starts if that fits the memory. Raises UsageError for durations or memory that do not fit
    together.
    """
    stages = _stages(durations, memory, micro_steps)
    kinds = ("F", "I", "W") if (0, "I") in durations else ("F", "B")
    model = _Model(durations, stages, micro_steps, kinds, memory, send)
    model.build()
    start = zero_bubble(stages, micro_steps) if "I" in kinds else one_f_one_b(stages, micro_steps)
    begun = timed(start, durations, send=send)
    model.hint(start)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.max_deterministic_time = effort
    solver.parameters.relative_gap_limit = near
    status = solver.solve(model.model)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        raise InfeasibleError(f"no schedule of {stages} stages was found within effort={effort}: give it more")
    found = model.schedule({action: solver.value(when) for action, when in model.starts.items()})
    best = timed(found, durations, send=send)
    fits = all(held <= limit for held, limit in zip(begun.in_flight, memory, strict=True))
    chosen = begun if fits and begun.makespan <= best.makespan else best
    # An action shorter than a unit was given one: the bound may owe it that.
    short = sum(took < model.tick for took in durations.values()) * micro_steps * model.tick
    return Solved(chosen.schedule, chosen.makespan, max(0.0, solver.best_objective_bound * model.tick - short))


def _stages(durations: Mapping[tuple[int, str], float], memory: Sequence[int], micro_steps: int) -> int:
    """How many stages the arguments speak of."""
    stages = len(memory)
    if micro_steps < 1 or stages < 1 or min(memory) < 1:
        raise UsageError(f"a schedule needs micro-steps and room for one on each stage; given: {micro_steps}, {memory}")
    kinds = ("F", "I", "W") if (0, "I") in durations else ("F", "B")
    missing = [f"{stage}{kind}" for stage in range(stages) for kind in kinds if (stage, kind) not in durations]
    if missing:
        raise UsageError(f"no duration of {', '.join(missing)}: all of {', '.join(kinds)} are needed for each stage")
    if min(durations.values()) < 0.0 or max(durations.values()) <= 0.0:
        raise UsageError(f"durations are seconds, none below zero and one above; given: {dict(durations)}")
    return stages


@dataclass(slots=True)
class _Model:
    """The CP-SAT model and its variables."""

    durations: Mapping[tuple[int, str], float]
    stages: int
    micro_steps: int
    kinds: tuple[str, ...]
    memory: Sequence[int]
    send: float
    model: cp_model.CpModel = field(default_factory=cp_model.CpModel)
    starts: dict[Action, cp_model.IntVar] = field(default_factory=dict)

    @property
    def tick(self) -> float:
        """Seconds of the unit of time."""
        return max(self.durations.values()) / TICKS

    @property
    def _lag(self) -> int:
        return int(self.send / self.tick)

    def build(self) -> None:
        horizon = self._horizon()
        last = self.model.new_int_var(0, horizon, "makespan")
        for stage in range(self.stages):
            for step in range(self.micro_steps):
                for kind in self.kinds:
                    action = Action(stage, kind, step)
                    self.starts[action] = self.model.new_int_var(0, horizon, str(action))
                    self.model.add(self._end(action) <= last)
        for stage in range(self.stages):
            self._rank(stage)
            for step in range(self.micro_steps):
                self._needs(stage, step)
        self.model.minimize(last)

    def schedule(self, when: Mapping[Action, int]) -> Schedule:
        """The actions of each rank in the order of their starts."""
        lines = [sorted((a for a in when if a.stage == stage), key=lambda a: when[a]) for stage in range(self.stages)]
        return Schedule.of(lines)

    def hint(self, schedule: Schedule) -> None:
        """Where the search begins: the starts of a schedule, in the model's own units so that they fit each other."""
        known = timed(schedule, lambda s, kind, _: float(self._ticks(Action(s, kind))), send=float(self._lag))
        for action, when in zip(known.graph.actions, known.start, strict=True):
            self.model.add_hint(self.starts[action], round(when))

    def _rank(self, stage: int) -> None:
        """One action at a time, micro-steps in order, no more of them in flight than there is room for."""
        one = [
            self.model.new_fixed_size_interval_var(start, self._ticks(action), str(action))
            for action, start in self.starts.items()
            if action.stage == stage
        ]
        self.model.add_no_overlap(one)
        for kind in self.kinds:
            for step in range(1, self.micro_steps):
                before = Action(stage, kind, step - 1)
                self.model.add(self.starts[Action(stage, kind, step)] >= self._end(before))
        for step in range(self.memory[stage], self.micro_steps):
            freed = Action(stage, self.kinds[-1], step - self.memory[stage])
            self.model.add(self.starts[Action(stage, "F", step)] >= self._end(freed))

    def _needs(self, stage: int, step: int) -> None:
        """Forward before backward, and from stage to stage."""
        for first, second in zip(self.kinds, self.kinds[1:], strict=False):
            self._after(Action(stage, second, step), Action(stage, first, step), 0)
        if stage > 0:
            self._after(Action(stage, "F", step), Action(stage - 1, "F", step), self._lag)
            self._after(Action(stage - 1, self.kinds[1], step), Action(stage, self.kinds[1], step), self._lag)

    def _after(self, action: Action, before: Action, lag: int) -> None:
        self.model.add(self.starts[action] >= self._end(before) + lag)

    def _end(self, action: Action) -> cp_model.LinearExpr:
        return self.starts[action] + self._ticks(action)

    def _ticks(self, action: Action) -> int:
        """At least one, so that the order of starts is the order of actions."""
        return max(1, int(self.durations[action.stage, action.kind] / self.tick))

    def _horizon(self) -> int:
        work = sum(self._ticks(Action(s, kind)) for s in range(self.stages) for kind in self.kinds)
        return self.micro_steps * (work + 2 * self.stages * self._lag)
