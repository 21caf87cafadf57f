"""What a sequence method is: attention of a group of ranks over documents they share, written against Comm and Block.

Letters: T tokens of this rank, S tokens of the group, H query heads, G key/value heads (query head h reads head
h // (H / G)), D head dimension. Sums are in the accumulation dtype: float32, or float64 for float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fourfold.ir.comm import Comm
from fourfold.ir.sequence.rectangles import Rectangle, Softmax, rectangles
from fourfold.ir.sequence.tokens import Shard

Saved = tuple[Tensor, ...]
Gradients = tuple[Tensor, Tensor, Tensor]
"""Of q, k and v."""


@dataclass(frozen=True, slots=True)
class Job:
    """One attention of a group: which tokens each rank holds, the softmax, and how to run it.

    `ulysses` ranks that stand together exchange heads for tokens, where the method does; `travel` is the dtype in which
    gradients of keys and values (or queries) go from rank to rank, None for the accumulation dtype.
    """

    shards: tuple[Shard, ...]
    softmax: Softmax
    ulysses: int = 1
    travel: torch.dtype | None = None

    def seen(self, queries: int, keys: int) -> tuple[Rectangle, ...]:
        """What rank `queries` sees of the keys of rank `keys`."""
        return rectangles(self.shards[queries], self.shards[keys], self.softmax)


@dataclass(frozen=True, slots=True)
class Sums:
    """An attention under way: out [T, H, D] normalised over the keys met so far, and their lse [H, T] (-inf: none)."""

    out: Tensor
    lse: Tensor


class Block(Protocol):
    """The kernels of one rank: they know rectangles, and nothing of other ranks."""

    @property
    def takes_delta(self) -> bool:
        """Whether `backward` takes rowsum(grad * out) [H, T] in place of out."""
        ...

    def empty(self, q_THD: Tensor) -> Sums:
        """Sums over no key."""
        ...

    def forward(self, sums: Sums, q_THD: Tensor, kv_2NGD: Tensor, seen: tuple[Rectangle, ...], scale: float) -> None:
        """Adds the keys of the rectangles to the sums, in place; keys and values are one tensor."""
        ...

    def merge(self, sums: Sums, out_MHD: Tensor, lse_HM: Tensor) -> None:
        """Adds, in place, an attention of the same rows over other keys; an lse of -inf stands for no key."""
        ...

    def backward(
        self,
        into: tuple[Tensor, Tensor],
        grad_THD: Tensor,
        q_THD: Tensor,
        kv_2NGD: Tensor,
        out: Tensor,
        lse_HT: Tensor,
        seen: tuple[Rectangle, ...],
        scale: float,
    ) -> None:
        """Adds the gradients of q and kv to `into`, in place, from the lse over all keys; `out` may be a delta."""
        ...


@dataclass(frozen=True, slots=True)
class Method:
    """One way to share an attention.

    forward: (comm, block, q, k, v, job) -> (out [T, H, D] in the dtype of q, what backward needs);
    backward: (comm, block, grad, saved, job) -> gradients of q, k and v in their dtypes;
    plain: what it saves is (q, kv [2, T, G, D], results..), so that a replay that has the results makes the rest anew.
    """

    name: str
    forward: Callable[[Comm, Block, Tensor, Tensor, Tensor, Job], tuple[Tensor, Saved]]
    backward: Callable[[Comm, Block, Tensor, Saved, Job], Gradients]
    plain: bool = True


def accumulation(dtype: torch.dtype) -> torch.dtype:
    """The dtype sums are kept in: float64 for float64, float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def zeros(like: Tensor) -> Tensor:
    """A sum of nothing, shaped as `like`."""
    return torch.zeros(like.shape, dtype=accumulation(like.dtype), device=like.device)


def delta(grad_THD: Tensor, out_THD: Tensor) -> Tensor:
    """rowsum(grad * out) [H, T] in the accumulation dtype: D of FlashAttention-2, over all keys."""
    kind = accumulation(out_THD.dtype)
    return (grad_THD.to(kind) * out_THD.to(kind)).sum(-1).t().contiguous()
