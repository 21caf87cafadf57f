"""From what every rank found to checks: errors over whole tensors, on the worst of the ranks that hold them alike."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from fourfold.compiler.verify.expect import (
    Bytes,
    cut_share,
    expected_bytes,
    expected_collectives,
    expected_reductions,
    lowered,
    stored,
)
from fourfold.compiler.verify.plain import Passed
from fourfold.compiler.verify.rank import Found, Job, Seen
from fourfold.compiler.verify.report import Check

TOLERANCES: Mapping[str, float] = {"float32": 1e-4, "float64": 1e-9}
FLOOR = 1e-3
"""A tensor smaller than this share of the largest is measured against that share."""
CUT = 0.9
"""The share of the blocks' weights that a tensor axis must take off a rank."""


def judged(job: Job, passed: Passed, found: Sequence[Found], dtype: str) -> tuple[Check, ...]:
    """All checks, in the order the report shows them."""
    limit = TOLERANCES[dtype]
    return (
        *(check for kind in found[0].tensors for check in _tensors(kind, [f.tensors[kind] for f in found], limit)),
        *_course(passed, [f.passed for f in found], limit),
        *_bytes(job, found),
        *_traffic(job, found),
        *(Check("rank", str(rank), math.inf, 0.0, text) for rank, f in enumerate(found) for text in f.wrong),
    )


def _tensors(kind: str, seen: Sequence[Mapping[str, Seen]], limit: float) -> Iterator[Check]:
    """||x - x0|| / max(||x0||, FLOOR of the largest ||x0||) of each tensor."""
    largest = max((math.sqrt(s.size) for s in seen[0].values()), default=0.0)
    for name in seen[0]:
        squares: dict[tuple[int, ...], float] = {}
        for rank in seen:
            here = rank[name]
            squares[here.place.replica] = squares.get(here.place.replica, 0.0) + here.error
        size = max(math.sqrt(seen[0][name].size), FLOOR * largest)
        errors = [math.sqrt(square) / size if size else square for square in squares.values()]
        yield Check(kind, name, math.inf if any(map(math.isnan, errors)) else max(errors), limit)


def _course(want: Passed, found: Sequence[Passed], limit: float) -> Iterator[Check]:
    for at, loss in enumerate(want.losses):
        name = "of the batch" if at == 0 else f"at step {at + 1}"
        yield _number("loss", name, loss, [f.losses[at] for f in found], limit)
    yield _number("norm", "of all gradients", want.norm, [f.norm for f in found], limit)
    yield _number("loss", "at the end, evaluated", want.evaluated, [f.evaluated for f in found], limit)


def _number(kind: str, name: str, want: float, found: Sequence[float], limit: float) -> Check:
    errors = [abs(value - want) / (abs(want) or 1.0) for value in found]
    error = math.inf if any(map(math.isnan, errors)) else max(errors)
    return Check(kind, name, error, limit, f"{found[0]:.6g}, plain {want:.6g}")


def _bytes(job: Job, found: Sequence[Found]) -> Iterator[Check]:
    """Every rank's bytes, to the byte."""
    states = stored(job.graph, lowered(job.plan, job.graph))
    for rank, one in enumerate(found):
        want = expected_bytes(job.graph, job.plan, states, rank)
        if not job.course.steps:
            want = Bytes(want.parameters, want.gradients, 0)
        off = sum(abs(getattr(want, k) - getattr(one.held, k)) for k in ("parameters", "gradients", "state"))
        held = f"{one.held.parameters} parameters, {one.held.gradients} gradients, {one.held.state} state"
        plan = "as planned" if not off else f"planned {want.parameters}, {want.gradients}, {want.state}"
        yield Check("bytes", f"of rank {rank}", float(off), 0.0, f"{held}; {plan}")
    if job.plan.mesh.tp > 1:
        share = cut_share(job.graph, states, job.plan.mesh.tp)
        yield Check("bytes", "left uncut of block weights", 1.0 - share, 1.0 - CUT, f"{share:.1%} cut over tp")


def _traffic(job: Job, found: Sequence[Found]) -> Iterator[Check]:
    """Collectives of the first step, on every rank: over tp all of them, over the pool those of gradients."""
    blocks = lowered(job.plan, job.graph)
    states = stored(job.graph, blocks)
    for rank, one in enumerate(found):
        micro = job.padded_tokens(rank)
        if job.plan.mesh.tp > 1:
            want = expected_collectives(job.graph, job.plan, blocks, micro)
            yield _counted(f"over tp of rank {rank}", want, one.traffic, len(micro))
        if job.plan.mesh.pool > 1:
            want = expected_reductions(job.graph, job.plan, states, len(micro))
            yield _counted(f"of gradients of rank {rank}", want, one.reductions, len(micro))


def _counted(name: str, want: Mapping[str, int], seen: Mapping[str, int], micro_steps: int) -> Check:
    off = sum(abs(want.get(kind, 0) - seen.get(kind, 0)) for kind in {*want, *seen})
    text = ", ".join(f"{n} {kind}" for kind, n in seen.items()) or "none"
    plan = "as planned" if not off else "planned " + ", ".join(f"{n} {kind}" for kind, n in want.items())
    steps = "1 micro-step" if micro_steps == 1 else f"{micro_steps} micro-steps"
    return Check("collectives", name, float(off), 0.0, f"{text} in {steps}; {plan}")
