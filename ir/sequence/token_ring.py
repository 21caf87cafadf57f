"""TokenRing (arXiv 2412.20501): keys and values stay, queries go round, what was found for them comes back.

At step t rank r works on the queries of rank r + t while these go on to rank r - 1 and what step t - 1 found goes
straight to its owner, all in one exchange: links carry both directions at once. Only rows that a later rank sees go on,
and only rows that saw a key come back: zigzag's late steps ship half. Backward is the same round, gradients of queries
come back; those of keys never leave.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fourfold.ir.comm import Comm, Expected
from fourfold.ir.sequence.method import Block, Gradients, Job, Method, Saved, Sums, accumulation, delta, zeros
from fourfold.ir.sequence.rectangles import Seen, rectangles
from fourfold.ir.sequence.route import Spans, Stop, counted, route

Tensors = tuple[Tensor, ...]
Work = Callable[[Seen, Tensors], Tensors]
"""From what some queries see of this rank's keys and what is carried for them to what these add for them."""
Add = Callable[[Tensors, Tensors], None]
"""Adds, in place, to what is known of some rows what another rank found for them."""
Messages = tuple[Sequence[tuple[int, Tensor]], Sequence[Expected]]
NOTHING: Messages = ((), ())


def forward(comm: Comm, block: Block, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, job: Job) -> tuple[Tensor, Saved]:
    """Every rank sends queries n - 1 times, and n - 1 outputs of others' in the dtype of q with their lse."""

    kv_2TGD = torch.stack((k_TGD, v_TGD))

    def work(seen: Seen, carried: Tensors) -> Tensors:
        sums = block.empty(carried[0])
        block.forward(sums, carried[0], kv_2TGD, seen, job.softmax.scale)
        return sums.out, sums.lse

    def add(known: Tensors, more: Tensors) -> None:
        block.merge(Sums(*known), *more)

    out, lse_HT = _round(comm, job, (q_THD,), work, add, (q_THD.dtype, accumulation(q_THD.dtype)))
    out_THD = out.to(q_THD.dtype)
    return out_THD, (q_THD, kv_2TGD, out_THD, lse_HT)


def backward(comm: Comm, block: Block, grad_THD: Tensor, saved: Saved, job: Job) -> Gradients:
    """Every rank sends (q, grad, lse, delta or out) n - 1 times, and n - 1 gradients of queries in `job.travel`."""
    q_THD, kv_2TGD, out_THD, lse_HT = saved
    sum_2TGD = zeros(kv_2TGD)
    rest = delta(grad_THD, out_THD) if block.takes_delta else out_THD

    def work(seen: Seen, carried: Tensors) -> Tensors:
        q, grad, out, lse = carried
        dq = zeros(q)
        block.backward((dq, sum_2TGD), grad, q, kv_2TGD, out, lse, seen, job.softmax.scale)
        return (dq,)

    travel = job.travel or accumulation(q_THD.dtype)
    (dq_THD,) = _round(comm, job, (q_THD, grad_THD, rest, lse_HT), work, _sum, (travel,))
    dk_TGD, dv_TGD = sum_2TGD.to(q_THD.dtype)
    return dq_THD.to(q_THD.dtype), dk_TGD, dv_TGD


def _round(comm: Comm, job: Job, carried: Tensors, work: Work, add: Add, kinds: Sequence[torch.dtype]) -> Tensors:
    """What the keys of all ranks add for this rank's queries; `kinds`: the dtypes in which others send their share."""
    stops = job.once(("route", job.softmax, comm.rank), lambda: route(job.shards, job.softmax, comm.rank))
    known: Tensors = ()
    found: Tensors = ()
    for step, stop in enumerate(stops):
        before, after = stops[step - 1], stops[step + 1 : step + 2]
        home = _homeward(before, found, known, kinds) if step > 1 else NOTHING
        onward = _onward(comm, stop, after[0], carried) if after else NOTHING
        coming = comm.exchange("token_ring", [*home[0], *onward[0]], [*home[1], *onward[1]], like=carried[0])
        found = work(_seen(comm, job, step, stop), tuple(_rows(x, stop.seen).contiguous() for x in carried))
        known = known or found
        arrived = coming.wait()
        _added(known, before.home, arrived[: len(home[1])], add)
        carried = arrived[len(home[1]) :] or carried
    if comm.size > 1:
        home = _homeward(stops[-1], found, known, kinds)
        coming = comm.exchange("token_ring", *home, like=carried[0])
        _added(known, stops[-1].home, coming.wait(), add)
    return known


def _seen(comm: Comm, job: Job, step: int, stop: Stop) -> Seen:
    """What the queries at a stop see of this rank's keys."""
    name = ("stop", job.softmax, comm.rank, step)
    return job.once(name, lambda: Seen(rectangles(stop.queries, job.shards[comm.rank], job.softmax)))


def _onward(comm: Comm, stop: Stop, after: Stop, carried: Tensors) -> Messages:
    """What is carried for these queries to the rank before, and for the next queries from the rank behind."""
    to, source = (comm.rank - 1) % comm.size, (comm.rank + 1) % comm.size
    expected = [Expected(source, _shape(x, after.rows), x.dtype) for x in carried]
    return [(to, _rows(x, stop.onward).contiguous()) for x in carried], expected


def _homeward(stop: Stop, found: Tensors, known: Tensors, kinds: Sequence[torch.dtype]) -> Messages:
    """What was found at a stop to its owner, and what its guest found for this rank's queries."""
    rows = counted(stop.home)
    expected = [Expected(stop.guest, _shape(x, rows), kind) for x, kind in zip(known, kinds, strict=True)]
    return [(stop.owner, x.to(kind)) for x, kind in zip(found, kinds, strict=True)], expected


def _added(known: Tensors, spans: Spans, arrived: Tensors, add: Add) -> None:
    """Adds what arrived for some rows to what is known."""
    if not (arrived and spans):
        return
    parts = tuple(_rows(x, spans) for x in known)
    add(parts, arrived)
    if len(spans) == 1:
        return
    for whole, part in zip(known, parts, strict=True):
        at = 0
        for first, past in spans:
            _rows(whole, ((first, past),)).copy_(_rows(part, ((at, at + past - first),)))
            at += past - first


def _rows(x: Tensor, spans: Spans) -> Tensor:
    """These rows, of [T, H, D] or [H, T]: a view where it is one stretch."""
    dim = _dim(x)
    if len(spans) == 1:
        first, past = spans[0]
        return x.narrow(dim, first, past - first)
    return torch.cat([x.narrow(dim, first, past - first) for first, past in spans] or [x.narrow(dim, 0, 0)], dim)


def _shape(x: Tensor, rows: int) -> tuple[int, ...]:
    dim = _dim(x)
    return (*x.shape[:dim], rows, *x.shape[dim + 1 :])


def _dim(x: Tensor) -> int:
    """Where the tokens are."""
    return 1 if x.dim() == 2 else 0


def _sum(known: Tensors, more: Tensors) -> None:
    known[0].add_(more[0])


TOKEN_RING = Method("token_ring", forward, backward)
