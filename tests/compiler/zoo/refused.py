"""Models that cannot be packed or captured, each with words its one-line error must have."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.plain import CONTEXT, LM, Attention, Block, D, E, H, heads


class Variant(Attention):
    """Attention whose middle is given."""

    def __init__(self, how: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.how(*(heads(p(x)) for p in (self.q, self.k, self.v))).transpose(1, 2).flatten(2))


def by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    s = q.shape[2]
    scores = q @ k.transpose(-2, -1) / math.sqrt(E)
    mask = torch.tril(torch.ones(s, s, device=q.device))
    return scores.masked_fill(mask == 0, float("-inf")).softmax(-1) @ v


def masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    s = q.shape[2]
    mask = torch.ones(s, s, dtype=torch.bool, device=q.device).tril()
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def alibi(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    place = torch.arange(q.shape[2], device=q.device)
    slopes = 2.0 ** -torch.arange(1, H + 1, device=q.device)
    bias = slopes[:, None, None] * (place[None] - place[:, None])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.elu(q) @ (k.transpose(-2, -1) @ v)


def complex_rotary(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    angles = torch.arange(q.shape[2], device=q.device)[:, None] * torch.ones(E // 2, device=q.device)
    turn = torch.polar(torch.ones_like(angles), angles)
    q, k = (
        torch.view_as_real(torch.view_as_complex(t.float().unflatten(-1, (-1, 2))) * turn).flatten(-2) for t in (q, k)
    )
    return F.scaled_dot_product_attention(q.to(v), k.to(v), v, is_causal=True)


def untransposed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def dropped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=0.1)


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class Middle(LM):
    """A model with something done to the hidden states between its blocks."""

    def __init__(self, how: Callable[[Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.how = how
        for name, part in parts.items():
            self.add_module(name, part)

    def body(self, x: Tensor) -> Tensor:
        return super().body(self.how(x))


def branch(x: Tensor) -> Tensor:
    return x * 2 if x.sum() > 0 else x


def shifted(x: Tensor) -> Tensor:
    return F.pad(x, (0, 0, 1, -1))


def overwritten(x: Tensor) -> Tensor:
    y = x * 1
    y[..., 0] = 0
    return y


class Constant(LM):
    """A tensor that is neither parameter nor buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.randn(CONTEXT, D)

    def embed(self, tokens: Tensor) -> Tensor:
        return self.embedding(tokens) + self.table[: tokens.shape[1]]


class Convolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(D, D, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.transpose(1, 2)).transpose(1, 2)


class LastToken(LM):
    def body(self, x: Tensor) -> Tensor:
        return super().body(x)[:, [-1], :]


class NoHead(LM):
    def forward(self, tokens: Tensor) -> Tensor:
        return self.norm(super().forward(tokens).softmax(-1)[..., :D])


class FixedBatch(LM):
    def body(self, x: Tensor) -> Tensor:
        return super().body(x.reshape(2, 24, D))


class Autocast(LM):
    def body(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().body(x)


class WithBatchNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(D)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.transpose(1, 2)).transpose(1, 2)


def encoder() -> nn.Module:
    return nn.TransformerEncoderLayer(D, H, 2 * D, dropout=0.1, batch_first=True, norm_first=True)


def with_middle(how: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    return lambda: Middle(how)


def with_attention(how: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[], nn.Module]:
    return lambda: LM(lambda: Block(Variant(how)))


SDPA = "scaled_dot_product_attention"

REFUSED: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "attention-by-hand": (with_attention(by_hand), (SDPA, "layers.0.attention", "refused.py:")),
    "mask": (with_attention(masked), ("is_causal=True", "layers.0.attention")),
    "alibi": (with_attention(alibi), ("is_causal=True", "layers.0.attention")),
    "linear-attention": (with_attention(linear_attention), ("mixes tokens",)),
    "complex-rotary": (with_attention(complex_rotary), ("cos and sin", "layers.0.attention")),
    "untransposed": (with_attention(untransposed), ("transpose(1, 2)",)),
    "attention-dropout": (with_attention(dropped), ("dropout 0.1 inside attention",)),
    "autograd-function": (with_middle(lambda x: Square.apply(x)), ("Square", "torch.library.custom_op")),
    "item": (with_middle(lambda x: x * x.sum().item()), (".item()", "plain.py:")),
    "branch": (with_middle(branch), ("branch on data", "refused.py:")),
    "token-shift": (with_middle(shifted), ("aten.pad", "mixes tokens")),
    "token-flip": (with_middle(lambda x: x.flip(1)), ("mixes positions",)),
    "token-mean": (with_middle(lambda x: x - x.mean(1, keepdim=True)), ("mixes tokens",)),
    "token-softmax": (with_middle(lambda x: x.softmax(1)), ("mixes tokens",)),
    "token-convolution": (
        lambda: LM(lambda: Block(Convolution())),
        ("aten.conv1d", "layers.*.attention.conv", "mixes tokens"),
    ),
    "random": (with_middle(lambda x: x + torch.rand_like(x)), ("random",)),
    "overwritten": (with_middle(overwritten), ("in place",)),
    "constant": (Constant, ("table", "register_buffer")),
    "last-token": (LastToken, ("indexes with",)),
    "no-head": (NoHead, ("the logits must come from a linear layer",)),
    "fixed-batch": (FixedBatch, ("fixes the batch size",)),
    "autocast": (Autocast, ("torch.autocast", "precision")),
    "batch-norm": (lambda: LM(lambda: Block(WithBatchNorm())), ("BatchNorm1d", "layer norm")),
    "lstm": (lambda: Middle(lambda x: x, rnn=nn.LSTM(D, D)), ("LSTM",)),
    "encoder-layer": (lambda: LM(encoder), ("layers.0",)),
}
