"""No sharing: every rank holds whole documents."""

from __future__ import annotations

import torch
from torch import Tensor

from fourfold.ir.comm import Comm
from fourfold.ir.sequence.method import Block, Gradients, Job, Method, Saved, zeros


def forward(comm: Comm, block: Block, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, job: Job) -> tuple[Tensor, Saved]:
    """Attention over this rank's own tokens."""
    sums, kv_2TGD = block.empty(q_THD), torch.stack((k_TGD, v_TGD))
    block.forward(sums, q_THD, kv_2TGD, job.seen(comm.rank, comm.rank), job.softmax.scale)
    out_THD = sums.out.to(q_THD.dtype)
    return out_THD, (q_THD, kv_2TGD, out_THD, sums.lse)


def backward(comm: Comm, block: Block, grad_THD: Tensor, saved: Saved, job: Job) -> Gradients:
    """Its gradients."""
    q_THD, kv_2TGD, out_THD, lse_HT = saved
    dq_THD, dkv_2TGD = zeros(q_THD), zeros(kv_2TGD)
    seen = job.seen(comm.rank, comm.rank)
    block.backward((dq_THD, dkv_2TGD), grad_THD, q_THD, kv_2TGD, out_THD, lse_HT, seen, job.softmax.scale)
    dk_TGD, dv_TGD = dkv_2TGD.to(kv_2TGD.dtype)
    return dq_THD.to(q_THD.dtype), dk_TGD, dv_TGD


WHOLE = Method("whole", forward, backward)
