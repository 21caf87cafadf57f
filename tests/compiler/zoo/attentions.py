"""Ways to write attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.plain import CONTEXT, Attention, D, E, H, attend, heads


class Fused(nn.Module):
    """One projection for q, k and v; `how` takes it apart."""

    def __init__(self, how: Callable[[Tensor], Any], bias: bool = True) -> None:
        super().__init__()
        self.qkv, self.out, self.how = nn.Linear(D, 3 * D, bias=bias), nn.Linear(D, D), how

    def forward(self, x: Tensor) -> Tensor:
        return self.out(attend(*self.how(self.qkv(x))))


def by_split(y: Tensor) -> Any:
    return (heads(p) for p in y.split(D, dim=2))


def by_unbind(y: Tensor) -> Any:
    b, s, _ = y.shape
    return (p.transpose(1, 2) for p in y.view(b, s, 3, H, E).unbind(2))


def by_permute(y: Tensor) -> Any:
    b, s, _ = y.shape
    qkv = y.reshape(b, s, 3, H, E).permute(2, 0, 3, 1, 4)
    return qkv[0], qkv[1], qkv[2]


def by_head(y: Tensor) -> Any:
    b, s, _ = y.shape
    return (p.transpose(1, 2) for p in y.view(b, s, H, 3, E).unbind(3))


def by_head_chunk(y: Tensor) -> Any:
    b, s, _ = y.shape
    return (p.transpose(1, 2) for p in y.view(b, s, H, 3 * E).chunk(3, dim=-1))


def rotary(s: int, width: int, device: Any) -> tuple[Tensor, Tensor]:
    angles = torch.arange(s, device=device)[:, None] * 0.1 ** (torch.arange(width // 2, device=device) / width)[None]
    angles = torch.cat((angles, angles), -1)
    return angles.cos(), angles.sin()


def turned(x: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat((-b, a), -1)


class Rotary(Attention):
    """Rotary positions on the first `part` of the head."""

    part = 4

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (heads(p(x)) for p in (self.q, self.k, self.v))
        cos, sin = rotary(x.shape[1], self.part, x.device)
        q, k = (self.rotate(t, cos, sin).type_as(t) for t in (q, k))
        return self.out(attend(q, k, v))

    def rotate(self, t: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        first, rest = t[..., : self.part], t[..., self.part :]
        return torch.cat((first * cos + turned(first) * sin, rest), -1)


class Interleaved(Rotary):
    """Pairs of neighbours, as in GPT-J."""

    part = E

    def rotate(self, t: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        even, odd = t[..., ::2], t[..., 1::2]
        cos, sin = cos[:, : E // 2], sin[:, : E // 2]
        return torch.stack((even * cos - odd * sin, odd * cos + even * sin), -1).flatten(-2)


class TableRotary(Rotary):
    """Rotary tables in buffers, the first rows taken."""

    part = E

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        cos, sin = rotary(CONTEXT, E, "cpu")
        self.register_buffer("cos", cos[None, None], persistent=False)
        self.register_buffer("sin", sin)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (heads(p(x)) for p in (self.q, self.k, self.v))
        s = x.size(1)
        q, k = (t * self.cos[:, :, :s] + turned(t) * self.sin[:s] for t in (q, k))
        return self.out(attend(q, k, v))


class QKNorm(Attention):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.qn, self.kn = nn.RMSNorm(E), nn.RMSNorm(E)
        self.temperature = nn.Parameter(torch.ones(H, 1, 1) * 1.5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (heads(p(x)) for p in (self.q, self.k, self.v))
        return self.out(attend(self.qn(q) * self.temperature, F.normalize(self.kn(k), dim=-1), v))


class Repeated(Attention):
    """Grouped queries by repeating keys and values."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (heads(p(x)) for p in (self.q, self.k, self.v))
        return self.out(attend(q, *(t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))))


class Expanded(Attention):
    """Grouped queries by stretching keys and values."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (heads(p(x)) for p in (self.q, self.k, self.v))
        b, g, s, e = k.shape
        n = q.shape[1] // g
        k, v = (t[:, :, None].expand(b, g, n, s, e).reshape(b, g * n, s, e) for t in (k, v))
        return self.out(attend(q, k, v))


class MultiQuery(Attention):
    """One key/value head, broadcast."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (heads(p(x)) for p in (self.q, self.k, self.v))
        return self.out(attend(q, k.expand(-1, q.shape[1], -1, -1), v.expand(-1, q.shape[1], -1, -1), scale=0.3))


class Einsum(nn.Module):
    """Attention with weights [d, h, e], written in einsums."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Parameter(torch.randn(D, H, E) / 5) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (torch.einsum("bsd,dhe->bhse", x, w) for w in (self.q, self.k, self.v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return torch.einsum("bhse,dhe->bsd", out, self.o)
