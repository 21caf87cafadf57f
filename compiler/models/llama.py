"""Llama as a plain module: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

B batch, S sequence, D width, H heads, G key/value heads, E head width, F feed-forward width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class LlamaConfig:
    """Sizes of one Llama; `feed_forward` is the width of the SwiGLU."""

    vocabulary: int = 256
    width: int = 128
    layers: int = 4
    heads: int = 8
    kv_heads: int = 4
    feed_forward: int = 384
    rope_base: float = 500_000.0
    norm_eps: float = 1e-5
    tied: bool = False


def rotary(positions_S: Tensor, config: LlamaConfig) -> tuple[Tensor, Tensor]:
    """Cosines and sines [S, E] of the rotary angles, in float32 (RoFormer, eq. 34)."""
    half = config.width // config.heads // 2
    steps = torch.arange(half, device=positions_S.device, dtype=torch.float32) / half
    angles = positions_S[:, None].float() * (config.rope_base**-steps)[None, :]
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x_BSHE: Tensor, cos_SE: Tensor, sin_SE: Tensor) -> Tensor:
    """Turns each pair (e, e + E/2) by its position's angle."""
    first, second = x_BSHE.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (x_BSHE * cos_SE[None, :, None, :] + turned * sin_SE[None, :, None, :]).to(x_BSHE.dtype)


class Attention(nn.Module):
    """Causal grouped-query attention."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.head_width = config.width // config.heads
        kv_width = config.kv_heads * self.head_width
        self.q = nn.Linear(config.width, config.width, bias=False)
        self.k = nn.Linear(config.width, kv_width, bias=False)
        self.v = nn.Linear(config.width, kv_width, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)

    def forward(self, x_BSD: Tensor, cos_SE: Tensor, sin_SE: Tensor) -> Tensor:
        q_BSHE, k_BSGE, v_BSGE = (p(x_BSD).unflatten(-1, (-1, self.head_width)) for p in (self.q, self.k, self.v))
        q_BHSE, k_BGSE = (rotate(x, cos_SE, sin_SE).transpose(1, 2) for x in (q_BSHE, k_BSGE))
        out_BHSE = F.scaled_dot_product_attention(
            q_BHSE, k_BGSE, v_BSGE.transpose(1, 2), is_causal=True, enable_gqa=True
        )
        return self.out(out_BHSE.transpose(1, 2).flatten(-2))


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.width, config.feed_forward, bias=False)
        self.up = nn.Linear(config.width, config.feed_forward, bias=False)
        self.down = nn.Linear(config.feed_forward, config.width, bias=False)

    def forward(self, x_BSD: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x_BSD)) * self.up(x_BSD))


class Block(nn.Module):
    """Pre-norm residual block."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.attention = Attention(config)
        self.feed_forward_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.feed_forward = FeedForward(config)

    def forward(self, x_BSD: Tensor, cos_SE: Tensor, sin_SE: Tensor) -> Tensor:
        x_BSD = x_BSD + self.attention(self.attention_norm(x_BSD), cos_SE, sin_SE)
        return x_BSD + self.feed_forward(self.feed_forward_norm(x_BSD))


class Llama(nn.Module):
    """tokens [B, S] -> logits [B, S, V]."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.head = nn.Linear(config.width, config.vocabulary, bias=False)
        if config.tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens_BS: Tensor) -> Tensor:
        x_BSD = self.embedding(tokens_BS)
        cos_SE, sin_SE = rotary(torch.arange(tokens_BS.shape[1], device=tokens_BS.device), self.config)
        for layer in self.layers:
            x_BSD = layer(x_BSD, cos_SE, sin_SE)
        return self.head(self.norm(x_BSD))
