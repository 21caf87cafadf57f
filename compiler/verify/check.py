"""The whole of verify: a model small enough, the plan refitted to it, the plain module, the processes, the report."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fourfold.backends.batch.sequences import limits_of
from fourfold.backends.communication import processes
from fourfold.compiler.api import plan_of
from fourfold.compiler.capture import capture
from fourfold.compiler.verify import batch as batches
from fourfold.compiler.verify.judge import judged
from fourfold.compiler.verify.placement import placed, told
from fourfold.compiler.verify.plain import Course, Passed, Sequences, reference
from fourfold.compiler.verify.rank import Job, run_rank
from fourfold.compiler.verify.reduced import SMALL, built, reduced
from fourfold.compiler.verify.refit import PRECISIONS, refitted, smaller
from fourfold.compiler.verify.report import Report
from fourfold.hardware.errors import UsageError
from fourfold.ir.answer import Answer
from fourfold.ir.batch import BatchPlan
from fourfold.ir.graph import Graph
from fourfold.ir.mesh import Mesh
from fourfold.ir.plan import Plan
from fourfold.passes.batch import Policy


@dataclass(frozen=True, slots=True)
class Case:
    """What is verified: the model made small, its graph, the plan refitted to it, the batch, where a policy has it run,
    and what was changed. `exact` is the dtype whose limit holds."""

    model: nn.Module
    graph: Graph
    plan: Plan
    batch: Sequences
    placed: BatchPlan | None
    notes: tuple[str, ...]
    exact: str


def verify(
    model: nn.Module | Callable[..., nn.Module],
    plan: Plan | Answer | str | Path,
    *,
    dtype: str = "float32",
    steps: int = 3,
    overrides: Mapping[str, Any] | None = None,
    ranks: int = 8,
    small: int = SMALL,
    timeout: float = 600.0,
    start: str | None = None,
    policy: str | Policy | None = None,
) -> Report:
    """The report of `plan` run on gloo processes of this machine, beside the plain module on the same ragged batch.

    Compared in `dtype` ("float32" to 1e-4, "float64" to 1e-9): the loss, every gradient, the global norm, one step of
    SGD and `steps` of AdamW with clipping; exactly: bytes a rank holds, and collectives on the tensor axis. A model
    function gets `overrides`; a model of more than `small` parameters is cut to two blocks; a plan for more than
    `ranks` ranks is verified on fewer. policy: who places the batch on the pool, by name or a function as in
    passes.batch.POLICIES; None deals it to the plan's fixed groups. Raises UsageError when the plan is for another
    model, RunError when a process dies or `timeout` seconds pass, InfeasibleError for what the policy cannot place.
    """
    begun = time.monotonic()
    case = prepared(built(model, overrides or {}), plan_of(plan), dtype=dtype, ranks=ranks, small=small, policy=policy)
    with tempfile.TemporaryDirectory(prefix="fourfold-verify-") as folder:
        path = Path(folder) / "reference.pt"
        plainly = partial(_plainly, case.model, case.batch, path, dtype, steps)
        ((course, passed),) = processes.run(plainly, 1, timeout=timeout, start=start)
        job = Job(case.model, case.plan, case.graph, case.batch, course, path, case.placed)
        found = processes.run(partial(run_rank, job), case.plan.mesh.ranks, timeout=timeout, start=start)
    checks = judged(job, passed, found, case.exact)
    return Report(
        model=case.graph.name,
        layout=_layout(case.plan),
        ranks=case.plan.mesh.ranks,
        dtype=dtype,
        lengths=tuple(len(item["tokens"]) for item in case.batch),
        micro_steps=job.micro_steps,
        checks=checks,
        seconds=time.monotonic() - begun,
        notes=case.notes,
        placed=None if case.placed is None else told(case.placed),
    )


def prepared(
    model: nn.Module,
    plan: Plan,
    *,
    dtype: str,
    ranks: int = 8,
    small: int = SMALL,
    policy: str | Policy | None = None,
) -> Case:
    """Everything the processes need, from the plan and the model as given."""
    if dtype not in PRECISIONS:
        raise UsageError(f"verify runs in {' or '.join(PRECISIONS)}, not in {dtype}")
    least, done = reduced(model, small=small)
    mesh = smaller(plan.mesh, ranks)
    fewer = f"verified as {mesh} in place of {plan.mesh}" if mesh != plan.mesh else ""
    graph, silent = _captured(least, getattr(torch, dtype))
    limits = limits_of(graph)
    vocabulary = min(n for n in (limits.tokens, limits.labels) if n is not None)
    batch, capacity = _batch(plan, mesh, vocabulary, limits.positions, dealt=policy is None)
    lengths = tuple(len(item["tokens"]) for item in batch)

    def fitted(capacity: int) -> Plan:
        return refitted(plan, graph, dtype=dtype, mesh=mesh, capacity=capacity, lengths=lengths)

    exact, coarse = _exact(graph, dtype)
    notes = tuple(note for note in (done, fewer, silent, coarse) if note)
    if policy is None:
        return Case(least, graph, fitted(-(-capacity // mesh.sp)), batch, None, notes, exact)
    there, made, refused = placed(policy, lengths, fitted)
    return Case(least, graph, there, batch, made, (*notes, *refused), exact)


def _exact(graph: Graph, dtype: str) -> tuple[str, str]:
    """The dtype whose limit a model can be held to, and a note where that is not its own.

    What a model itself casts down to float32, a gradient flowing through it, is rounded to float32 on either side.
    """
    for block in graph.blocks.values():
        values = block.values()
        for node in block.nodes:
            source = values[node.refs()[0]] if node.op == "cast" else None
            if source is not None and source.grad and (source.dtype, node.value.dtype) == ("float64", "float32"):
                where = ".".join(part for part in (block.name, node.module) if part)
                return "float32", f"{where} computes in float32 whatever the dtype: held to the limit of float32"
    return dtype, ""


def _batch(plan: Plan, mesh: Mesh, vocabulary: int, longest: int | None, *, dealt: bool) -> tuple[Sequences, int]:
    """The batch, and how many tokens a group of ranks holds of what is dealt to it."""
    if not dealt:
        return batches.unplaced(vocabulary=vocabulary, pool=mesh.pool, longest=longest), 0
    steps = min(plan.micro_steps, 2)
    return batches.ragged(vocabulary=vocabulary, pool=mesh.dp, micro_steps=steps, longest=longest)


def _captured(model: nn.Module, dtype: torch.dtype) -> tuple[Graph, str]:
    """The graph as it is trained; without dropout where there is any, since no two runs would agree."""
    graph = capture(model, dtype)
    if not any(node.op == "dropout" for block in graph.blocks.values() for node in block.nodes):
        return graph, ""
    return capture(model, dtype, training=False), "dropout is off"


def _plainly(
    model: nn.Module, batch: Sequences, path: Path, dtype: str, steps: int, rank: int
) -> tuple[Course, Passed]:
    return reference(model, batch, path, dtype=getattr(torch, dtype), steps=steps)


def _layout(plan: Plan) -> str:
    words: Sequence[str] = tuple(dict.fromkeys(plan.recompute)) or ("none",)
    return f"{plan.mesh}, ZeRO {plan.zero}, recompute {' and '.join(words)}"
