"""A model of one's own, as the command line takes it: `fourfold plan examples/model.py:parallel ...`.

A plain single-device module, tokens [B, S] -> logits [B, S, V]; keywords can be changed with --set.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Layer(nn.Module):
    """Attention with one key/value head (multi-query), and a feed-forward layer beside it on the same input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * (width // heads))
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x_BSD: Tensor) -> Tensor:
        h_BSD = self.norm(x_BSD)
        q_BHSE = self.query(h_BSD).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k_B1SE, v_B1SE = (part.unsqueeze(1) for part in self.key_value(h_BSD).chunk(2, dim=-1))
        o_BHSE = F.scaled_dot_product_attention(q_BHSE, k_B1SE, v_B1SE, is_causal=True, enable_gqa=True)
        return x_BSD + self.out(o_BHSE.transpose(1, 2).flatten(-2)) + self.down(F.gelu(self.up(h_BSD)))


class Parallel(nn.Module):
    """Layers after each other, positions learned."""

    def __init__(self, width: int, layers: int, heads: int, vocabulary: int, context: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens_BS: Tensor) -> Tensor:
        x_BSD = self.tokens(tokens_BS) + self.positions(torch.arange(tokens_BS.shape[1], device=tokens_BS.device))
        for layer in self.layers:
            x_BSD = layer(x_BSD)
        return self.head(self.norm(x_BSD))


def parallel(
    *, width: int = 128, layers: int = 2, heads: int = 4, vocabulary: int = 256, context: int = 1024
) -> nn.Module:
    """The model; Fourfold calls this under torch.device("meta"), so no weight is allocated."""
    return Parallel(width, layers, heads, vocabulary, context)
