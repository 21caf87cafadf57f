"""The parts most models share, and sizes.

B batch, S sequence, D width, H heads, G key/value heads, E head width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

D, H, E, V, CONTEXT = 24, 4, 6, 61, 64


def heads(x_BSD: Tensor, width: int = E) -> Tensor:
    return x_BSD.unflatten(-1, (-1, width)).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, **options).transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Causal attention; `kv` key/value heads."""

    def __init__(self, d: int = D, h: int = H, kv: int = H, bias: bool = True) -> None:
        super().__init__()
        self.width = d // h
        self.q, self.out = nn.Linear(d, d, bias=bias), nn.Linear(d, d, bias=bias)
        self.k, self.v = (nn.Linear(d, kv * self.width, bias=bias) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (heads(p(x), self.width) for p in (self.q, self.k, self.v))
        return self.out(attend(q, k, v, enable_gqa=q.shape[1] != k.shape[1]))


class MLP(nn.Module):
    def __init__(self, d: int = D) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class Block(nn.Module):
    """Pre-norm; other blocks override `forward`."""

    def __init__(self, attention: nn.Module | None = None, mlp: nn.Module | None = None, d: int = D) -> None:
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.attention, self.mlp = attention or Attention(d), mlp or MLP(d)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.n1(x))
        return x + self.mlp(self.n2(x))


class LM(nn.Module):
    """Embedding with learned positions, blocks, norm, head."""

    def __init__(
        self, block: Callable[[], nn.Module] = Block, d: int = D, v: int = V, depth: int = 2, bias: bool = False
    ) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(v, d), nn.Embedding(CONTEXT, d)
        self.layers = nn.ModuleList(block() for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, v, bias=bias)

    def embed(self, tokens: Tensor) -> Tensor:
        return self.embedding(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))

    def body(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)

    def forward(self, tokens: Tensor) -> Any:
        return self.head(self.body(self.embed(tokens)))
