"""The comparison for uneven lengths: FSDP2, compiled blocks, documents packed by best fit, torch's varlen attention.

Every rank runs as many bins as any other, each of `capacity` tokens, padded; attention stays inside documents. The loss
is summed over all targets and divided by their number in the whole batch. T tokens of a bin, D width.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from measuring import Clock, Shape
from stock import CHUNK, Head, Stock, StockProgram, head_loss
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fourfold.compiler.models.llama import Block, rotary

IGNORED = -100


@dataclass(frozen=True, slots=True)
class Variant:
    """One setting: tokens of a bin, whether blocks are replayed, whether parameters are gathered again."""

    capacity: int
    recompute: bool
    reshard: bool

    def __str__(self) -> str:
        words = "recompute" if self.recompute else "keep", "reshard" if self.reshard else "hold"
        return f"bins of {self.capacity // 1024}K, {', '.join(words)}"


@dataclass(frozen=True, slots=True)
class Bin:
    """Documents packed to a fixed size, on the host: tokens, targets and positions [T], where documents end."""

    tokens: Tensor
    targets: Tensor
    positions: Tensor
    ends: tuple[int, ...]
    longest: int

    @classmethod
    def of(cls, documents: Sequence[Tensor], capacity: int) -> Bin:
        """Documents one behind the other, and padding as one more."""
        lengths = [len(one) for one in documents]
        spare = capacity - sum(lengths)
        tail = torch.zeros(spare, dtype=torch.long)
        tokens = torch.cat((*documents, tail))
        none = torch.tensor([IGNORED])
        targets = torch.cat((*(torch.cat((one[1:], none)) for one in documents), tail + IGNORED))
        padding = [min(128, spare - at) for at in range(0, spare, 128)]
        positions = torch.cat([torch.arange(n) for n in (*lengths, *padding)])
        return cls(tokens, targets, positions, tuple(accumulate((*lengths, *padding))), max(lengths, default=1))


def bins(lengths: Sequence[int], capacity: int, ranks: int) -> list[list[int]]:
    """Sequences by best fit, longest first, in a whole number of bins a rank; bins of like work side by side."""
    held: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fits = [b for b in range(len(held)) if room[b] >= lengths[i]]
        if not fits:
            held.append([])
            room.append(capacity)
            fits = [len(held) - 1]
        best = min(fits, key=lambda b: room[b])
        held[best].append(i)
        room[best] -= lengths[i]
    held += [[] for _ in range(-len(held) % ranks)]
    return sorted(held, key=lambda one: -sum(lengths[i] ** 2 for i in one))


class Packed(Stock):
    """The stock Llama over one bin, from tokens to the summed loss."""

    def forward(self, tokens_1T: Tensor, targets_1T: Tensor, positions_T: Tensor, ends: Tensor, longest: int) -> Tensor:  # type: ignore[override]
        x_1TD = self.embedding(tokens_1T)
        cos_TE, sin_TE = rotary(positions_T, self.config)
        for layer in self.layers:
            x_1TD = layer(x_1TD, cos_TE, sin_TE, ends, longest)
        loss: Tensor = self.head(self.norm(x_1TD), targets_1T)
        return loss


class Summing(Head):
    """The head with its loss summed piece by piece, each replayed in backward: float logits of a bin fit nowhere."""

    def forward(self, x_1TD: Tensor, targets_1T: Tensor) -> Tensor:
        x_TD, targets_T = x_1TD.flatten(0, 1), targets_1T.flatten()
        total = x_TD.new_zeros((), dtype=torch.float32)
        for start in range(0, len(targets_T), CHUNK):
            x, targets = (part[start : start + CHUNK] for part in (x_TD, targets_T))
            total = total + checkpoint(self.of_logits, x, self.weight, targets, use_reentrant=False)
        return total


class VarlenProgram(StockProgram):
    """One sharded model and its optimizer, which all variants share."""

    def model_of(self, shape: Shape) -> nn.Module:
        """On the meta device."""
        model = Packed(shape.config)
        model.head = Summing(shape.config)
        return model

    def choose(self, variant: Variant) -> None:
        """Makes the following steps run as the variant says."""
        for block in self.model.layers:
            block.forward = _forward(block, recompute=variant.recompute, compiled=self.shape.real)
            block.set_reshard_after_forward(variant.reshard)
        self.model.embedding.set_reshard_after_forward(variant.reshard)
        if self.shape.real:
            self.model.head.of_logits = torch.compile(head_loss, dynamic=False)

    def steps(self, mine: Sequence[Bin], targets: int, clock: Clock) -> float:
        """One step over this rank's bins; gradients are summed over bins, and averaged over ranks by FSDP."""
        total = torch.zeros((), device=self.shape.device)
        for number, one in enumerate(mine):
            last = number == len(mine) - 1
            self.model.set_requires_gradient_sync(last)
            self.model.set_is_last_backward(last)
            move: Callable[[Tensor], Tensor] = lambda x: x.to(self.shape.device, non_blocking=True)  # noqa: E731
            ends = move(torch.tensor((0, *one.ends), dtype=torch.int32))
            loss = self.model(move(one.tokens[None]), move(one.targets[None]), move(one.positions), ends, one.longest)
            (loss * (dist.get_world_size() / targets)).backward()
            total += loss.detach()
        clock.mark("optimizer")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        dist.all_reduce(total)
        return float(total) / targets


def _forward(block: Any, *, recompute: bool, compiled: bool) -> Callable[..., Tensor]:
    def plain(x: Tensor, cos: Tensor, sin: Tensor, ends: Tensor, longest: int) -> Tensor:
        return _block(block, x, (cos, sin), ends, longest)

    def replayed(x: Tensor, cos: Tensor, sin: Tensor, ends: Tensor, longest: int) -> Tensor:
        found: Tensor = checkpoint(plain, x, cos, sin, ends, longest, use_reentrant=False, preserve_rng_state=False)
        return found

    chosen = replayed if recompute else plain
    return torch.compile(chosen, fullgraph=True, dynamic=None) if compiled else chosen


def _block(block: Block, x_1TD: Tensor, turn: tuple[Tensor, Tensor], ends: Tensor, longest: int) -> Tensor:
    from fourfold.compiler.models.llama import rotate

    inner, x = block.attention, block.attention_norm(x_1TD)
    q, k, v = (p(x).unflatten(-1, (-1, inner.head_width)) for p in (inner.q, inner.k, inner.v))
    q, k = rotate(q, *turn), rotate(k, *turn)
    out_TD = attention(q[0], k[0], v[0], ends, longest).flatten(-2)
    x_1TD = x_1TD + inner.out(out_TD[None])
    mixed: Tensor = x_1TD + block.feed_forward(block.feed_forward_norm(x_1TD))
    return mixed


def attention(q_THE: Tensor, k_TGE: Tensor, v_TGE: Tensor, ends: Tensor, longest: int) -> Tensor:
    """torch's varlen attention, causal; written out on a CPU, which it does not know."""
    if q_THE.device.type == "cpu":
        bounds = ends.tolist()
        parts = [slice(a, b) for a, b in pairwise(bounds)]
        mixed = (_alone(q_THE[one], k_TGE[one], v_TGE[one]) for one in parts)
        return torch.cat(list(mixed))
    from torch.nn.attention.varlen import varlen_attn

    words = inspect.signature(varlen_attn).parameters
    how: dict[str, Any] = {"is_causal": True} if "is_causal" in words else {"window_size": (-1, 0)}
    how |= {"enable_gqa": True} if "enable_gqa" in words else {}
    found: Tensor = varlen_attn(q_THE, k_TGE, v_TGE, ends, ends, longest, longest, **how)  # type: ignore[assignment]
    return found


def _alone(q_THE: Tensor, k_TGE: Tensor, v_TGE: Tensor) -> Tensor:
    q, k, v = (x.transpose(0, 1)[None] for x in (q_THE, k_TGE, v_TGE))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)[0].transpose(0, 1)
