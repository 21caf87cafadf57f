"""A pipeline schedule as text: what each pipeline rank does, action by action, one line a rank.

`2F0` is stage 2, forward, micro-step 0. `B` is the whole backward, `I` its part for the inputs and `W` the one for the
weights. `2SEND_F0>3` sends an activation to stage 3, which takes it with `3RECV_F0<2`; `SEND_B` and `RECV_B` carry
gradients. `2UNSHARD`, `2RESHARD`, `2REDUCE` and `2REDUCE_TIED` concern a stage as a whole.

`2N0` is a forward that keeps nothing but the state, keys and values, which later chunks of its sequence read, and what
came into the stage; the F of the same stage and micro-step, later on the line, runs it again from there. What the stage
gives goes on once, from N: SEND_F and RECV_F are then its own, and F has none. Stages need not drop the same.

How a line is executed: compute goes one after the other; SEND and RECV are posted where they stand, after the compute
before them, and hold up no line; a compute waits for the RECV that brings its input. The messages of one queue (a pair
of ranks, both ways) go in the order of the line, at both ends.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fourfold.hardware.errors import UsageError

COMPUTE = ("N", "F", "B", "I", "W")
SENDS = ("SEND_F", "SEND_B")
RECEIVES = ("RECV_F", "RECV_B")
STAGEWISE = ("UNSHARD", "RESHARD", "REDUCE", "REDUCE_TIED")

WORD = re.compile(
    r"(?P<stage>\d+)(?:(?P<compute>[NFBIW])(?P<step>\d+)"
    r"|(?P<send>SEND_[FB])(?P<sent>\d+)>(?P<to>\d+)"
    r"|(?P<receive>RECV_[FB])(?P<received>\d+)<(?P<source>\d+)"
    r"|(?P<whole>UNSHARD|RESHARD|REDUCE_TIED|REDUCE))"
)


class ScheduleError(UsageError):
    """A schedule that cannot be read or executed."""


@dataclass(frozen=True, slots=True)
class Action:
    """One thing a rank does for `stage`. `micro_step` is 0 for what concerns the whole stage; `peer` is a stage."""

    stage: int
    kind: str
    micro_step: int = 0
    peer: int | None = None

    def __str__(self) -> str:
        if self.kind in STAGEWISE:
            return f"{self.stage}{self.kind}"
        if self.peer is None:
            return f"{self.stage}{self.kind}{self.micro_step}"
        return f"{self.stage}{self.kind}{self.micro_step}{'>' if self.kind in SENDS else '<'}{self.peer}"

    @classmethod
    def parse(cls, word: str) -> Action:
        """The action that prints as `word`. Raises ScheduleError."""
        found = WORD.fullmatch(word)
        if found is None:
            raise ScheduleError(
                f"{word!r} is no action: write 2N0, 2F0, 2B0, 2I0, 2W0, 2SEND_F0>3, 3RECV_F0<2, 3SEND_B0>2, "
                "2RECV_B0<3, 2UNSHARD, 2RESHARD, 2REDUCE or 2REDUCE_TIED"
            )
        stage = int(found["stage"])
        if found["compute"]:
            return cls(stage, found["compute"], int(found["step"]))
        if found["send"]:
            return cls(stage, found["send"], int(found["sent"]), int(found["to"]))
        if found["receive"]:
            return cls(stage, found["receive"], int(found["received"]), int(found["source"]))
        return cls(stage, found["whole"])


@dataclass(frozen=True, slots=True)
class Schedule:
    """What each of `ranks` pipeline ranks does, one line a rank; stage s lies on rank owner[s]."""

    stages: int
    ranks: int
    micro_steps: int
    owner: tuple[int, ...]
    lines: tuple[tuple[Action, ...], ...]

    def __str__(self) -> str:
        return "\n".join(" ".join(map(str, line)) for line in self.lines)

    @classmethod
    def parse(cls, text: str) -> Schedule:
        """The schedule that prints as `text`; empty lines are skipped. Raises ScheduleError naming line and word."""
        rows = [(number, row.split()) for number, row in enumerate(text.splitlines(), start=1) if row.strip()]
        return cls.of([[_action(word, number) for word in words] for number, words in rows])

    @classmethod
    def of(cls, lines: Sequence[Iterable[Action]]) -> Schedule:
        """The schedule of these lines; the rest is read off them. Raises ScheduleError where it cannot."""
        fixed = tuple(tuple(line) for line in lines)
        if not all(fixed) or not fixed:
            raise ScheduleError(
                "a schedule has one line a rank and something on each: at least 1 rank and 1 micro-step"
            )
        home: dict[int, int] = {}
        for rank, line in enumerate(fixed):
            for action in line:
                if home.setdefault(action.stage, rank) != rank:
                    raise ScheduleError(
                        f"line {rank + 1}: {action} lies on rank {rank}, but stage {action.stage} is on rank "
                        f"{home[action.stage]}; all actions of a stage stand on one line"
                    )
        stages = 1 + max(home, default=-1)
        missing = [stage for stage in range(stages) if stage not in home]
        if missing:
            raise ScheduleError(f"stage {missing[0]} of {stages} is on no line; stages count from 0 without gaps")
        steps = 1 + max((action.micro_step for line in fixed for action in line), default=-1)
        return cls(stages, len(fixed), steps, tuple(home[stage] for stage in range(stages)), fixed)


def _action(word: str, line: int) -> Action:
    try:
        return Action.parse(word)
    except ScheduleError as error:
        raise ScheduleError(f"line {line}: {error}") from None


def in_turn(micro_steps: int) -> Schedule:
    """One stage: each micro-step forward and backward before the next."""
    line = [Action(0, kind, step) for step in range(micro_steps) for kind in "FB"]
    return Schedule(1, 1, micro_steps, (0,), (tuple(line),))
