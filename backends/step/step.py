"""One step of a program: micro-steps go through the stages as the schedule says, and the loss is told to all."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fourfold.backends.attention.sequence import Chain
from fourfold.backends.batch.batching import Portion
from fourfold.backends.communication.aside import Aside
from fourfold.backends.lowering.late import Late
from fourfold.backends.stage.engine import Engine, Micro
from fourfold.backends.stage.sharding import Sharding
from fourfold.backends.stage.tied import Tied
from fourfold.backends.step.pipeline import Executor
from fourfold.backends.step.random import seeded
from fourfold.ir.schedule import Schedule


@dataclass
class Step:
    """What the executor of a schedule asks of this rank, for one global batch.

    portions: this rank's micro-steps; scale: what each loss is multiplied by; place: numbers that tell this step's
    random draws from all others'. apart: ranks have micro-steps of their own, so that what all ranks do together is
    done before the first and after the last of them.
    """

    engine: Engine
    sharding: Sharding
    tied: Tied
    aside: Aside
    portions: Sequence[Portion]
    scale: float
    place: tuple[int, ...]
    training: bool
    apart: bool = False
    losses: int = 0
    micros: dict[int, Micro] = field(default_factory=dict)
    chains: dict[int, Chain] = field(default_factory=dict)
    split: frozenset[tuple[int, int]] = frozenset()
    late: dict[tuple[int, int], Late] = field(default_factory=dict)

    def run(self, schedule: Schedule) -> float:
        """The sum of all losses on all ranks that the last stage lies on, known to every rank."""
        ranks = self.engine.ranks
        total = torch.zeros((), dtype=torch.float64, device=ranks.device)
        joined: list[Tensor] = []

        def seen(part: Tensor) -> None:
            total.add_(part)
            self.losses += 1
            # The loss is known before the last backward, and reading it must not wait for that; but where there are
            # stages, the others first wait for its gradient.
            if self.losses == len(self.portions) and schedule.ranks == 1 and not self.apart:
                joined.append(self.aside.sum(total))

        self.split = frozenset((a.stage, a.micro_step) for line in schedule.lines for a in line if a.kind == "W")
        if self.apart:
            self.sharding.gather()
        Executor(schedule, ranks.stage_rank, ranks.wire, self, self.training).run(seen)
        if self.apart and self.training:
            self._reduce(schedule)
        return self.aside.read(joined[0] if joined else self.aside.sum(total))

    def forward(self, stage: int, micro_step: int, received: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """One stage of one micro-step."""
        root: Any = self.sharding.root
        with self._drawing(stage, micro_step):
            micro = self._micro(micro_step)
            late = self.engine.late(micro) if self.training and (stage, micro_step) in self.split else None
            if late is not None:
                self.late[stage, micro_step] = late
            share = self.portions[micro_step].turn.offloaded if self.training else 0.0
            away = self.engine.offloading(stage, share)
            how: dict[str, Any] = {"scale": self.scale, "training": self.training, "late": late, "away": away}
            return self.engine.run(root, stage, micro, received, **how)

    def carry(self, stage: int, micro_step: int, received: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """One stage of a chunk's first pass, without its loss; the caller keeps no graph."""
        with self._drawing(stage, micro_step):
            micro = self._micro(micro_step)
            how: dict[str, Any] = {"scale": self.scale, "training": self.training, "loss": False}
            return self.engine.run(self.sharding.root, stage, micro, received, **how)

    def weigh(self, stage: int, micro_step: int) -> None:
        """The half of a split backward that gives the weights their gradients."""
        self.engine.weigh(self.sharding.root, stage, self.late.pop((stage, micro_step)))

    def expected(self, stage: int, micro_step: int) -> tuple[Tensor, ...]:
        """Empty tensors for what the stage takes."""
        return self.engine.expected(stage, self._micro(micro_step).tokens)

    def crosses(self, stage: int) -> tuple[bool, ...]:
        """Of each value a stage gives to the next: whether a gradient comes back for it."""
        return self.engine.crosses(stage)

    def about_to(self, stage: int, *, last: bool, final: bool) -> None:
        """Before a backward: whether it reduces gradients and shards parameters again."""
        self.sharding.about_to(stage, last=last and not self.apart, final=final and not self.apart)

    def reduce_tied(self, stage: int) -> None:
        """Adds the gradients of parameters that other stages hold, too."""
        if not self.apart:
            self.tied.reduce(stage)

    def _reduce(self, schedule: Schedule) -> None:
        """The gradients of all micro-steps over the pool, stage by stage: a backward that adds nothing to them."""
        own = [stage for stage, rank in enumerate(schedule.owner) if rank == self.engine.ranks.stage_rank]
        for stage in own:
            self.sharding.about_to(stage, last=True, final=stage == own[-1])
            self.engine.weigh(self.sharding.root, stage, self.engine.late(self._micro(0)))
        for line in schedule.lines:
            for action in line:
                if action.kind == "REDUCE_TIED" and schedule.owner[action.stage] == self.engine.ranks.stage_rank:
                    self.tied.reduce(action.stage)

    def _micro(self, micro_step: int) -> Micro:
        if micro_step not in self.micros:
            portion, plan = self.portions[micro_step], self.engine.plan
            packed = portion.packed(bucket=plan.bucket, device=self.engine.ranks.device)
            self.micros[micro_step] = self.engine.micro(packed, portion.turn, self.chains)
        return self.micros[micro_step]

    def _drawing(self, stage: int, micro_step: int) -> AbstractContextManager[object]:
        """Where dropout draws numbers of its own on every rank, the same when the step is run again after a load."""
        if not self.engine.draws or not self.training:
            return nullcontext()
        ranks = self.engine.ranks
        return seeded(ranks.device, *self.place, stage, micro_step, ranks.rank)
