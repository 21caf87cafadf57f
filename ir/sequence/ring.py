"""Ring attention: keys and values go round, queries stay (arXiv 2310.01889), for any layout of the documents.

At step t rank r works on the keys of rank r - t while they go on to rank r + 1. Backward sends them round again; the
sums of their gradients follow one step behind: those of rank j begin at rank j + 1, its first guest, and come home
after n - 1 hops, where j's own share is added.
"""

from __future__ import annotations

from torch import Tensor

from fourfold.ir.comm import Comm, Handle, shift
from fourfold.ir.sequence.method import Block, Gradients, Job, Method, Saved, accumulation, zeros


def forward(comm: Comm, block: Block, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, job: Job) -> tuple[Tensor, Saved]:
    """Every rank sends 2 x its keys n - 1 times."""
    sums, own_2TGD = block.empty(q_THD), job.stored(comm.rank, k_TGD, v_TGD)
    current_2TGD = own_2TGD
    for step in range(comm.size):
        source = (comm.rank - step) % comm.size
        coming = _pass_on(comm, current_2TGD, job, step)
        block.forward(sums, q_THD, current_2TGD, job.seen(comm.rank, source), job.softmax.scale)
        if coming is not None:
            (current_2TGD,) = coming.wait()
    out_THD = sums.out.to(q_THD.dtype)
    return out_THD, (q_THD, own_2TGD, out_THD, sums.lse)


def backward(comm: Comm, block: Block, grad_THD: Tensor, saved: Saved, job: Job) -> Gradients:
    """Every rank sends 2 x its keys, and 2 x the gradients of others' in `job.travel`, n - 1 times each."""
    q_THD, current_2TGD, out_THD, lse_HT = saved
    dq_THD, own_2TGD = zeros(q_THD), job.sums(current_2TGD)
    summed_2TGD, following = own_2TGD, None
    travel = job.travel or accumulation(q_THD.dtype)
    for step in range(comm.size):
        source = (comm.rank - step) % comm.size
        coming = _pass_on(comm, current_2TGD, job, step)
        share_2TGD = own_2TGD if step == 0 else zeros(current_2TGD)
        into, seen = (dq_THD, share_2TGD), job.seen(comm.rank, source)
        block.backward(into, grad_THD, q_THD, current_2TGD, out_THD, lse_HT, seen, job.softmax.scale)
        if following is not None:
            share_2TGD += following.wait()[0]
        if step:
            summed_2TGD = share_2TGD
            following = _follow(comm, summed_2TGD.to(travel), job, step)
        if coming is not None:
            (current_2TGD,) = coming.wait()
    if following is not None:
        own_2TGD += following.wait()[0]
    return dq_THD.to(q_THD.dtype), *job.own(own_2TGD, comm.rank, q_THD.dtype)


def _pass_on(comm: Comm, current_2TGD: Tensor, job: Job, step: int) -> Handle | None:
    """The keys of the rank before, on their way here while these are worked on; None at the last step."""
    if step == comm.size - 1:
        return None
    return shift(comm, (current_2TGD,), 1, (_shape(current_2TGD, job, comm.rank - step - 1),))


def _follow(comm: Comm, summed_2TGD: Tensor, job: Job, step: int) -> Handle:
    """Sums of gradients of keys that were here at `step`, to the rank that has them next; its own come here."""
    return shift(comm, (summed_2TGD,), 1, (_shape(summed_2TGD, job, comm.rank - step - 1),))


def _shape(like: Tensor, job: Job, rank: int) -> tuple[int, ...]:
    """Of the keys of a rank."""
    return (2, job.keys(rank % len(job.shards)).tokens, *like.shape[2:])


RING = Method("ring", forward, backward)
