"""No sharing: every rank holds whole documents."""

from __future__ import annotations

from torch import Tensor

from fourfold.ir.comm import Comm
from fourfold.ir.sequence.method import Block, Gradients, Job, Method, Saved, zeros


def forward(comm: Comm, block: Block, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, job: Job) -> tuple[Tensor, Saved]:
    """Attention over this rank's own tokens."""
    sums = block.empty(q_THD)
    block.forward(sums, q_THD, k_TGD, v_TGD, job.seen(comm.rank, comm.rank), job.softmax.scale)
    out_THD = sums.out.to(q_THD.dtype)
    return out_THD, (q_THD, k_TGD, v_TGD, out_THD, sums.lse)


def backward(comm: Comm, block: Block, grad_THD: Tensor, saved: Saved, job: Job) -> Gradients:
    """Its gradients."""
    q_THD, k_TGD, v_TGD, *_ = saved
    into = (zeros(q_THD), zeros(k_TGD), zeros(v_TGD))
    block.backward(into, grad_THD, *saved, job.seen(comm.rank, comm.rank), job.softmax.scale)
    return into[0].to(q_THD.dtype), into[1].to(k_TGD.dtype), into[2].to(v_TGD.dtype)


WHOLE = Method("whole", forward, backward)
