"""All-gathered keys and values (Llama 3's context parallelism, arXiv 2407.21783): each rank's queries see all of them.

What a rank sees of its own keys is worked out while those of the others arrive. Backward gathers them again, so that
only a rank's own stay, and sends each rank the gradients of its keys, which adds them up.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fourfold.ir.comm import Comm, Handle, all_gather, all_to_all, with_own
from fourfold.ir.sequence.method import Block, Gradients, Job, Method, Saved, accumulation, zeros
from fourfold.ir.sequence.rectangles import Seen, rectangles
from fourfold.ir.sequence.tokens import Shard, joined


def forward(comm: Comm, block: Block, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, job: Job) -> tuple[Tensor, Saved]:
    """Every rank sends 2 x its keys to each of the others."""
    sums, own_2TGD = block.empty(q_THD), job.stored(comm.rank, k_TGD, v_TGD)
    coming = _gather(comm, own_2TGD, job)
    block.forward(sums, q_THD, own_2TGD, job.seen(comm.rank, comm.rank), job.softmax.scale)
    others_2SGD = _others(coming)
    if others_2SGD is not None:
        block.forward(sums, q_THD, others_2SGD, _seen(comm, job), job.softmax.scale)
    out_THD = sums.out.to(q_THD.dtype)
    return out_THD, (q_THD, own_2TGD, out_THD, sums.lse)


def backward(comm: Comm, block: Block, grad_THD: Tensor, saved: Saved, job: Job) -> Gradients:
    """Every rank sends 2 x its keys, and to each of the others 2 x that one's gradients in `job.travel`."""
    q_THD, own_2TGD, out_THD, lse_HT = saved
    coming = _gather(comm, own_2TGD, job)
    dq_THD, sum_2TGD = zeros(q_THD), job.sums(own_2TGD)
    scale = job.softmax.scale
    seen = job.seen(comm.rank, comm.rank)
    block.backward((dq_THD, sum_2TGD), grad_THD, q_THD, own_2TGD, out_THD, lse_HT, seen, scale)
    others_2SGD = _others(coming)
    if others_2SGD is not None:
        into_2SGD, seen = zeros(others_2SGD), _seen(comm, job)
        block.backward((dq_THD, into_2SGD), grad_THD, q_THD, others_2SGD, out_THD, lse_HT, seen, scale)
        for share_2TGD in _home(comm, into_2SGD, sum_2TGD, job):
            sum_2TGD += share_2TGD
    return dq_THD.to(q_THD.dtype), *job.own(sum_2TGD, comm.rank, q_THD.dtype)


def _gather(comm: Comm, own_2TGD: Tensor, job: Job) -> Handle:
    rest = own_2TGD.shape[2:]
    return all_gather(comm, own_2TGD, [(2, job.keys(rank).tokens, *rest) for rank in range(comm.size)])


def _others(coming: Handle) -> Tensor | None:
    """The keys of all other ranks, one behind the other."""
    arrived = coming.wait()
    if len(arrived) < 2:
        return arrived[0] if arrived else None
    return torch.cat(arrived, 1)


def _elsewhere(comm: Comm, job: Job) -> Shard:
    """How `_others` stores its tokens."""
    return joined([job.keys(rank) for rank in range(comm.size) if rank != comm.rank])


def _seen(comm: Comm, job: Job) -> Seen:
    name = ("elsewhere", job.softmax, comm.rank)
    return job.once(name, lambda: Seen(rectangles(job.shards[comm.rank], _elsewhere(comm, job), job.softmax)))


def _home(comm: Comm, into_2SGD: Tensor, own_2TGD: Tensor, job: Job) -> tuple[Tensor, ...]:
    """The gradients of this rank's keys that the others found."""
    travel = job.travel or accumulation(own_2TGD.dtype)
    sizes = [job.keys(rank).tokens for rank in range(comm.size) if rank != comm.rank]
    shares = [share.to(travel) for share in into_2SGD.split(sizes, 1)]  # type: ignore[no-untyped-call]
    parts = with_own(comm, [share.contiguous() for share in shares], own_2TGD.to(travel))
    return all_to_all(comm, [(parts, [tuple(own_2TGD.shape)] * comm.size)], name="reduce_scatter").wait()


GATHER_KV = Method("gather_kv", forward, backward)
