"""What a sequence method is: attention of a group of ranks over documents they share, written against Comm and Block.

Letters: T tokens of this rank, S tokens of the group, H query heads, G key/value heads (query head h reads head
h // (H / G)), D head dimension. Sums are in the accumulation dtype: float32, or float64 for float64.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from fourfold.ir.comm import Comm
from fourfold.ir.sequence.rectangles import Seen, Softmax, once, rectangles
from fourfold.ir.sequence.tokens import Shard, joined

T = TypeVar("T")
Saved = tuple[Tensor, ...]
Gradients = tuple[Tensor, Tensor, Tensor]
"""Of q, k and v."""


@dataclass(slots=True)
class Carried:
    """Keys and values of a sequence that passes through one attention chunk by chunk, as one rank stores them.

    rows: of all its chunks; kv [2, rows, G, D], filled chunk by chunk; sums, the gradients of all of them in the
    accumulation dtype, from the backward of the last chunk to that of the first.
    """

    rows: int
    kv: Tensor | None = None
    sums: Tensor | None = None

    def store(self, k_TGD: Tensor, v_TGD: Tensor, at: int) -> Tensor:
        """All keys and values up to those of this chunk, which begin in row `at`."""
        if self.kv is None:
            self.kv = k_TGD.new_empty((2, self.rows, *k_TGD.shape[1:]))
        past = at + k_TGD.shape[0]
        for there, x in zip(self.kv, (k_TGD, v_TGD), strict=True):
            there[at:past] = x
        return self.kv[:, :past]

    def summed(self, past: int) -> Tensor:
        """The gradients of all keys and values before row `past`, to be added to in place."""
        assert self.kv is not None, "a backward follows a forward"
        if self.sums is None:
            self.sums = zeros(self.kv)
        return self.sums[:, :past]


@dataclass(frozen=True, slots=True)
class Job:
    """One attention of a group: which tokens each rank holds, the softmax, and how to run it.

    `ulysses` ranks that stand together exchange heads for tokens, where the method does; `travel` is the dtype in which
    gradients of keys and values (or queries) go from rank to rank, None for the accumulation dtype. Of a chunk,
    `earlier` are the keys that each rank holds of those before it, and `carried` has them on this rank. `known` is what
    all layers of a micro-step share, on the ranks of one process, by names that say of which rank it is.
    """

    shards: tuple[Shard, ...]
    softmax: Softmax
    ulysses: int = 1
    travel: torch.dtype | None = None
    earlier: tuple[Shard, ...] = ()
    carried: Carried | None = None
    known: dict[Hashable, object] = field(default_factory=dict, compare=False, repr=False)

    def once(self, name: Hashable, make: Callable[[], T]) -> T:
        """What `make` gives, asked by the first layer that wants it."""
        return once(self.known, name, make)

    def keys(self, rank: int) -> Shard:
        """The tokens whose keys a rank holds: of a chunk, those before it first."""
        if not self.earlier:
            return self.shards[rank]
        return self.once(("keys", rank), lambda: joined((self.earlier[rank], self.shards[rank])))

    def seen(self, queries: int, keys: int) -> Seen:
        """What rank `queries` sees of the keys of rank `keys`."""
        name = ("seen", self.softmax, queries, keys)
        return self.once(name, lambda: Seen(rectangles(self.shards[queries], self.keys(keys), self.softmax)))

    def stored(self, rank: int, k_TGD: Tensor, v_TGD: Tensor) -> Tensor:
        """The keys and values that this rank holds, [2, S, G, D], with those it has just made."""
        if self.carried is None:
            return torch.stack((k_TGD, v_TGD))
        return self.carried.store(k_TGD, v_TGD, self.earlier[rank].tokens)

    def again(self, rank: int, k_TGD: Tensor, v_TGD: Tensor) -> Tensor:
        """What `stored` gave, from the same keys and values."""
        if self.carried is None or self.carried.kv is None:
            return self.stored(rank, k_TGD, v_TGD)
        return self.carried.kv[:, : self.keys(rank).tokens]

    def sums(self, kv_2SGD: Tensor) -> Tensor:
        """What the gradients of this rank's keys and values are added to."""
        return zeros(kv_2SGD) if self.carried is None else self.carried.summed(kv_2SGD.shape[1])

    def own(self, sums_2SGD: Tensor, rank: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The gradients, all added up, of the keys and the values that were made here, [T, G, D] each."""
        dk_TGD, dv_TGD = sums_2SGD[:, sums_2SGD.shape[1] - self.shards[rank].tokens :].to(dtype)
        return dk_TGD, dv_TGD


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

    def forward(self, sums: Sums, q_THD: Tensor, kv_2NGD: Tensor, seen: Seen, scale: float) -> None:
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
        seen: Seen,
        scale: float,
    ) -> None:
        """Adds the gradients of q and kv to `into`, in place, from the lse over all keys; `out` may be a delta."""
        ...


@dataclass(frozen=True, slots=True)
class Method:
    """One way to share an attention.

    forward: (comm, block, q, k, v, job) -> (out [T, H, D] in the dtype of q, what backward needs);
    backward: (comm, block, grad, saved, job) -> gradients of q, k and v in their dtypes;
    plain: what it saves is (q, kv [2, S, G, D], results..), so that a replay that has the results makes the rest anew;
    merges: the first of these results is out, which it makes by merging blocks.
    """

    name: str
    forward: Callable[[Comm, Block, Tensor, Tensor, Tensor, Job], tuple[Tensor, Saved]]
    backward: Callable[[Comm, Block, Tensor, Saved, Job], Gradients]
    plain: bool = True
    merges: bool = True


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
