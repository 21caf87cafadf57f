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
    own_of,
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
        *(check for kind in found[0].tensors for check in _tensors(job, kind, [f.tensors[kind] for f in found], limit)),
        *_course(passed, [f.passed for f in found], limit),
        *_bytes(job, found),
        *_traffic(job, found),
        *(Check("rank", str(rank), math.inf, 0.0, text) for rank, f in enumerate(found) for text in f.wrong),
    )


def _tensors(job: Job, kind: str, seen: Sequence[Mapping[str, Seen]], limit: float) -> Iterator[Check]:
    """||x - x0|| / max(||x0||, FLOOR of the largest ||x0||) of each tensor, on the stages that hold it."""
    sizes = {name: math.sqrt(s.size) for rank in seen for name, s in rank.items()}
    largest = max(sizes.values(), default=0.0)
    for name in sizes:
        squares: dict[tuple[int, ...], float] = {}
        for number, rank in enumerate(seen):
            if name not in rank:
                continue
            key = (job.plan.mesh.place(number, "pp"), *rank[name].place.replica)
            squares[key] = squares.get(key, 0.0) + rank[name].error
        size = max(sizes[name], FLOOR * largest)
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
    rows = []
    for rank, one in enumerate(found):
        want = expected_bytes(own_of(job.graph, job.plan, rank), job.plan, states, rank)
        if not job.course.steps:
            want = Bytes(want.parameters, want.gradients, 0)
        rows.append((_held(want), _held(one.held)))
    yield from _exact("bytes", "of ", rows)
    if job.plan.mesh.tp > 1:
        share = cut_share(job.graph, states, job.plan.mesh.tp)
        yield Check("bytes", "left uncut of block weights", 1.0 - share, 1.0 - CUT, f"{share:.1%} cut over tp")


def _held(held: Bytes) -> Mapping[str, int]:
    return {"parameters": held.parameters, "gradients": held.gradients, "state": held.state}


def _traffic(job: Job, found: Sequence[Found]) -> Iterator[Check]:
    """Collectives of the first step, on every rank: over tp all of them, over the pool those of gradients."""
    blocks = lowered(job.plan, job.graph)
    states = stored(job.graph, blocks)
    micro = [job.padded_tokens(rank) for rank in range(len(found))]
    own = [own_of(job.graph, job.plan, rank) for rank in range(len(found))]
    if job.plan.mesh.tp > 1:
        want = [
            expected_collectives(
                job.graph, job.plan, blocks, tokens, place=job.plan.mesh.place(rank, "pp"), carried=job.carried(rank)
            )
            for rank, tokens in enumerate(micro)
        ]
        yield from _exact("collectives", "over tp, ", list(zip(want, (f.traffic for f in found), strict=True)))
    if job.plan.mesh.pool > 1:
        pairs = zip(own, micro, strict=True)
        want = [expected_reductions(graph, job.plan, states, len(tokens)) for graph, tokens in pairs]
        yield from _exact("collectives", "of gradients, ", list(zip(want, (f.reductions for f in found), strict=True)))


def _exact(kind: str, name: str, rows: Sequence[tuple[Mapping[str, int], Mapping[str, int]]]) -> Iterator[Check]:
    """One check for the ranks that were to count the same and did count the same: planned and found, rank by rank."""
    ranks: dict[tuple[str, str], list[int]] = {}
    errors: dict[tuple[str, str], float] = {}
    for rank, (want, seen) in enumerate(rows):
        key = (_words(want), _words(seen))
        ranks.setdefault(key, []).append(rank)
        errors[key] = float(sum(abs(want.get(k, 0) - seen.get(k, 0)) for k in {*want, *seen}))
    for (want_text, seen_text), same in ranks.items():
        who = "all ranks" if len(same) == len(rows) else f"ranks {', '.join(map(str, same))}"
        detail = seen_text if want_text == seen_text else f"{seen_text}; planned {want_text}"
        yield Check(kind, name + who, errors[want_text, seen_text], 0.0, detail)


def _words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items()) if n) or "none"
