"""GPT-2 as a plain module: learned positions, LayerNorm, biases, fused QKV, GELU, dropout, tied head.

B batch, S sequence, D width, H heads, E head width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class GPTConfig:
    """Sizes of one GPT; `context` is the length of the learned position table."""

    vocabulary: int = 256
    width: int = 128
    layers: int = 4
    heads: int = 4
    context: int = 1024
    dropout: float = 0.0
    tied: bool = True


class Attention(nn.Module):
    """Causal attention with one fused projection."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.dropout = config.dropout
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)

    def forward(self, x_BSD: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x_BSD).chunk(3, dim=-1))
        out_BHSE = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return F.dropout(self.out(out_BHSE.transpose(1, 2).flatten(-2)), self.dropout, self.training)


class Block(nn.Module):
    """Pre-norm residual block."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention = Attention(config)
        self.feed_forward_norm = nn.LayerNorm(config.width)
        self.up = nn.Linear(config.width, 4 * config.width)
        self.down = nn.Linear(4 * config.width, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BSD: Tensor) -> Tensor:
        x_BSD = x_BSD + self.attention(self.attention_norm(x_BSD))
        hidden_BSF = F.gelu(self.up(self.feed_forward_norm(x_BSD)), approximate="tanh")
        return x_BSD + self.dropout(self.down(hidden_BSF))


class GPT(nn.Module):
    """tokens [B, S] -> logits [B, S, V]."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocabulary, config.width)
        self.positions = nn.Embedding(config.context, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.vocabulary, bias=False)
        if config.tied:
            self.head.weight = self.tokens.weight

    def forward(self, tokens_BS: Tensor) -> Tensor:
        positions_S = torch.arange(tokens_BS.shape[1], device=tokens_BS.device)
        x_BSD = self.dropout(self.tokens(tokens_BS) + self.positions(positions_S))
        for layer in self.layers:
            x_BSD = layer(x_BSD)
        return self.head(self.norm(x_BSD))
