"""Attention shared by a group of ranks, one node for autograd: a method of ir/sequence on the kernels of this rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fourfold.backends.kernels.attention import Kept
from fourfold.backends.kernels.block import block_for
from fourfold.ir.comm import Comm
from fourfold.ir.sequence.method import Block, Job, Method, Saved
from fourfold.ir.sequence.rectangles import Softmax
from fourfold.ir.sequence.tokens import Shard


@dataclass(frozen=True, slots=True)
class Group:
    """Who shares the documents of one micro-step: the ranks, what each holds, and how they go about it.

    `ulysses` and `travel` are those of a Job.
    """

    comm: Comm
    shards: tuple[Shard, ...]
    method: Method
    ulysses: int = 1
    travel: torch.dtype | None = None

    @property
    def tokens(self) -> int:
        """Real tokens of this rank; what is stored behind them is padding."""
        return self.shards[self.comm.rank].tokens

    def job(self, softmax: Softmax) -> Job:
        """One attention of the group."""
        return Job(self.shards, softmax, self.ulysses, self.travel)


def share(
    q_THD: Tensor,
    k_TGD: Tensor,
    v_TGD: Tensor,
    group: Group,
    *,
    scale: float,
    causal: bool,
    window: int | None = None,
    kept: Kept | None = None,
) -> Tensor:
    """Attention of this rank's tokens over the documents of the group, [T, H, D]; zero where the tokens are padding.

    Differentiable in q, k and v; a collective of the group, forward and backward. kept: as for `attend`.
    """
    job = group.job(Softmax(scale, causal, window))
    known = kept.take() if kept is not None else None
    if known is not None:
        out: Tensor = _Again.apply(q_THD, k_TGD, v_TGD, group, known)  # type: ignore[no-untyped-call]
        return out
    tokens: list[Tensor] = []
    out = _Shared.apply(q_THD, k_TGD, v_TGD, group, job, tokens)  # type: ignore[no-untyped-call]
    if kept is not None:
        kept.found.append(tuple(tokens))
    return out


class _Shared(torch.autograd.Function):
    """A method's forward and backward. What a replay needs again is put into `told`."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, group: Group, job: Job, told: list[Tensor]) -> Tensor:
        ctx.group, ctx.job, ctx.block = group, job, block_for(q)
        ctx.padded = q.shape[0] - group.tokens
        q, k, v = (x.narrow(0, 0, group.tokens) for x in (q, k, v))
        out, saved = group.method.forward(group.comm, ctx.block, q, k, v, job)
        ctx.save_for_backward(*saved)
        told += _told(group.method, out, saved)
        return _padded(out, ctx.padded)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        group: Group = ctx.group
        block: Block = ctx.block
        grad = grads[0].narrow(0, 0, group.tokens).contiguous()
        found = group.method.backward(group.comm, block, grad, ctx.saved_tensors, ctx.job)
        return (*(_padded(x, ctx.padded) for x in found), None, None, None)


class _Again(torch.autograd.Function):
    """A shared attention whose result is known: saves what `_Shared` saves, in its order, and computes nothing."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, group: Group, known: Saved) -> Tensor:
        out, *rest = known
        saved: Saved = tuple(rest)
        if group.method.plain:
            saved = (q.narrow(0, 0, group.tokens), torch.stack((k, v)).narrow(1, 0, group.tokens), *rest)
        ctx.save_for_backward(*saved)
        return _padded(out, q.shape[0] - group.tokens)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise AssertionError("a replay of attention was differentiated")


def _told(method: Method, out: Tensor, saved: Saved) -> Saved:
    """What a replay cannot make from q, k and v: the results, or all that was saved where other ranks' is in it."""
    rest = saved[2:] if method.plain else saved
    return (out, *(x.detach() for x in rest))


def _padded(x: Tensor, more: int) -> Tensor:
    return torch.cat((x, x.new_zeros((more, *x.shape[1:])))) if more else x
