"""What one process of verify does: runs the plan's program through the course and measures its own part."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import set_checkpoint_early_stop

from fourfold.backends.batch.batching import dealt_turns, padded
from fourfold.backends.batch.placing import Turn, turns
from fourfold.backends.communication.traffic import Traffic
from fourfold.backends.program import Options, Program
from fourfold.backends.weights.parts import Place, local, part_of, place_of
from fourfold.compiler.schedules import Scheduled, ordered
from fourfold.compiler.verify.expect import Bytes
from fourfold.compiler.verify.placement import Fixed
from fourfold.compiler.verify.plain import Course, Passed, Sequences, run_course
from fourfold.ir.batch import BatchPlan
from fourfold.ir.graph import Graph
from fourfold.ir.plan import Plan


@dataclass(frozen=True, slots=True)
class Job:
    """All a rank needs: the model (its weights come from the file `path`), the plan for it, the batch, the course.

    placed: where a policy has the batch run; None where it is dealt.
    """

    model: nn.Module
    plan: Plan
    graph: Graph
    batch: Sequences
    course: Course
    path: Path
    placed: BatchPlan | None = None

    @property
    def micro_steps(self) -> int:
        """How many micro-steps the rank runs that has most."""
        return max(len(self.padded_tokens(rank)) for rank in range(self.plan.mesh.ranks))

    def padded_tokens(self, rank: int) -> tuple[int, ...]:
        """Tokens of each micro-step of a rank, padding included."""
        return tuple(padded(max(turn.most, turn.run.tokens), self.plan.bucket) for turn in self._turns(rank))

    def carried(self, rank: int) -> frozenset[int]:
        """Micro-steps that a rank runs forward once more before: chunks whose activations are not kept."""
        if self.placed is None:
            return frozenset()
        mesh = self.plan.mesh
        line = ordered(self.plan, self.placed, mesh.place(rank, "pool")).lines[mesh.place(rank, "pp")]
        return frozenset(action.micro_step for action in line if action.kind == "N")

    def _turns(self, rank: int) -> tuple[Turn, ...]:
        place = self.plan.mesh.place(rank, "pool")
        if self.placed is not None:
            return turns(self.placed, place, every=self.plan.zero > 1)
        return dealt_turns([len(item["tokens"]) for item in self.batch], self.plan, place)


@dataclass(frozen=True, slots=True)
class Seen:
    """One tensor as a rank sees it: where its part lies, the square of its error and of what it should be."""

    place: Place
    error: float
    size: float


@dataclass(frozen=True, slots=True)
class Found:
    """What one rank found. `tensors`: kind -> name -> Seen; `traffic`: the first step's collectives over tp, by kind;
    `reductions`: those over the pool that carry gradients; `wrong`: in words, what no number tells."""

    passed: Passed
    tensors: Mapping[str, Mapping[str, Seen]]
    held: Bytes
    traffic: Mapping[str, int]
    reductions: Mapping[str, int]
    wrong: tuple[str, ...] = ()


@dataclass(slots=True)
class _Eye:
    """Compares the program with the file whenever the course asks."""

    program: Program
    graph: Graph
    kept: Mapping[str, Mapping[str, Tensor]]
    tensors: dict[str, dict[str, Seen]] = field(default_factory=dict)
    gradients: int = 0
    state: int = 0
    wrong: list[str] = field(default_factory=list)

    def see(self, what: str, optimizer: Any) -> None:
        """Each tensor's own part against the same part of the plain module's."""
        found = self.tensors[what] = {}
        for name, parameter in self.program.named_parameters():
            value = parameter.grad if what == "gradient" else parameter
            if not parameter.requires_grad and value is not parameter:
                self.wrong += [f"{name} is frozen and has a gradient"] if value is not None else []
                continue
            if value is None:
                self.wrong.append(f"{name} has no gradient")
                continue
            found[self._title(name)] = self._seen(name, parameter, value, self.kept[what])
        if what == "gradient":
            self._covered()
            grads = (p.grad for p in self.program.parameters())
            self.gradients = sum(_bytes(g) for g in grads if g is not None)
        if what == "adamw":
            values = [v for state in optimizer.state.values() for k, v in state.items() if k != "step"]
            self.state = sum(_bytes(v) for v in values)

    def _covered(self) -> None:
        """Every gradient of the plain module that this stage has a share in: its tensor, or parts that make it up."""
        held: dict[str, int] = {}
        for name, parameter in self.program.named_parameters():
            whole = self._whole(name)
            held[whole] = held.get(whole, 0) + parameter.numel()
        own = {self._whole(name) for name, _ in self.program.engine.own.parameters()}
        for name, gradient in self.kept["gradient"].items():
            if name in own and held.get(name) != gradient.numel():
                self.wrong.append(f"{name} has {gradient.numel()} elements and the program {held.get(name, 0)} of them")

    def _whole(self, name: str) -> str:
        part = self.graph.parts.get(name)
        return part.of if part else name

    def _seen(self, name: str, parameter: Tensor, value: Tensor, kept: Mapping[str, Tensor]) -> Seen:
        part = self.graph.parts.get(name)
        whole = kept.get(self._whole(name))
        with torch.no_grad():
            mine = local(value.detach())
            if whole is None:
                return Seen(place_of(parameter), _square(mine), 0.0)
            if part is not None:
                whole = whole.narrow(part.dim, part.start, part.stop - part.start)
            want = part_of(parameter, whole)
            if mine.shape != want.shape:
                self.wrong.append(
                    f"{name}: this rank holds {tuple(mine.shape)} of {tuple(whole.shape)}, not {tuple(want.shape)}"
                )
                return Seen(place_of(parameter), float("nan"), _square(whole))
            return Seen(place_of(parameter), _square(mine - want), _square(whole))

    def _title(self, name: str) -> str:
        """A part of a fused weight under the weight's own name, with its rows."""
        part = self.graph.parts.get(name)
        return name if part is None else f"{part.of}[{':, ' * part.dim}{part.start}:{part.stop}]"


def run_rank(job: Job, rank: int) -> Found:
    """The whole course on this rank. The process group is there already."""
    kept = torch.load(job.path, mmap=True, weights_only=True)
    options = Options(compile=False, device=torch.device("cpu"))
    placement = None if job.placed is None else Fixed(job.plan, job.placed)
    program = Program(job.model, job.plan, job.graph, options, Scheduled.of(job.plan), placement)
    program.copy_from(_filled(job.model, kept["start"]))
    eye = _Eye(program, job.graph, kept)
    first: list[Traffic] = []

    def step() -> float:
        if first:
            return program.step(job.batch)
        first.append(Traffic())
        with first[0], set_checkpoint_early_stop(False):
            return program.step(job.batch)

    passed = run_course(
        list(program.parameters()),
        job.course,
        step=step,
        clip=program.clip_grad_norm_,
        evaluate=lambda: program.evaluate(job.batch),
        see=eye.see,
    )
    axis, kind = ("shard", "reduce_scatter") if job.plan.zero else ("replicate", "all_reduce")
    pool = first[0].of_step(program.ranks.mesh[axis].get_group().group_name) if job.plan.mesh.pool > 1 else {}
    held = Bytes(sum(_bytes(p) for _, p in program.named_parameters()), eye.gradients, eye.state)
    return Found(
        passed=passed,
        tensors=eye.tensors,
        held=held,
        traffic=first[0].of_step(program.ranks.tensor.group) if job.plan.mesh.tp > 1 else {},
        reductions={name: n for name, n in pool.items() if name == kind},
        wrong=tuple(eye.wrong),
    )


def _filled(model: nn.Module, values: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the model whose tensors are `values`."""
    memo: dict[int, Any] = {
        id(p): nn.Parameter(values[n], requires_grad=p.requires_grad) for n, p in model.named_parameters()
    }
    memo |= {id(b): values[n] for n, b in model.named_buffers()}
    return copy.deepcopy(model, memo)


def _bytes(value: Tensor) -> int:
    mine = local(value)
    return mine.numel() * mine.element_size()


def _square(value: Tensor) -> float:
    return float(value.double().square().sum())
