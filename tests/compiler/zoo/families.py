"""Whole models in the manner of published families, each with several things at once that a user's model may have."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.plain import V, attend

Angles = tuple[Tensor, Tensor]


def angles(s: int, width: int, like: Tensor) -> Angles:
    """Cosines and sines by `outer`, in the dtype of `like`: each layer of a loop asks for its own cast."""
    frequencies = 1.0 / 10000 ** (torch.arange(0, width, 2, device=like.device).float() / width)
    turned = torch.outer(torch.arange(s, device=like.device).float(), frequencies)
    return turned.cos(), turned.sin()


def halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x[..., ::2], x[..., 1::2]
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)


class NeoXBlock(nn.Module):
    """Two norms, both branches added at once; q, k and v of a head side by side; a third of a head is turned."""

    def __init__(self, width: int, heads: int, rotary: int) -> None:
        super().__init__()
        self.heads, self.rotary = heads, rotary
        self.n1, self.n2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.dense = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def turned(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return torch.cat((halves(x[..., : self.rotary], cos, sin), x[..., self.rotary :]), -1)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        b, s, width = x.shape
        qkv = self.qkv(self.n1(x)).view(b, s, self.heads, 3 * width // self.heads)
        q, k, v = (t.transpose(1, 2) for t in qkv.chunk(3, -1))
        attended = attend(self.turned(q, cos, sin), self.turned(k, cos, sin), v)
        return x + self.dense(attended) + self.down(F.gelu(self.up(self.n2(x))))


class FalconBlock(nn.Module):
    """One norm, both branches added at once; one key head, part of a fused product; heads and widths are odd."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head = heads, width // heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, width + 2 * self.head, bias=False)
        self.dense = nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width + 3, bias=False), nn.Linear(4 * width + 3, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        b, s, width = x.shape
        y = self.norm(x)
        q, k, v = self.qkv(y).split((width, self.head, self.head), -1)
        q, k, v = (t.view(b, s, -1, self.head).transpose(1, 2) for t in (q, k, v))
        q, k = pairs(q, cos, sin), pairs(k, cos, sin)
        attended = attend(q, k.expand(b, self.heads, s, self.head), v.expand(b, self.heads, s, self.head))
        return x + self.dense(attended) + self.down(F.gelu(self.up(y), approximate="tanh"))


class ShiftedNorm(nn.Module):
    """A norm by hand whose weight counts from one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * (1 + self.weight)


class GemmaBlock(nn.Module):
    """Norms before and after each branch and on heads, of a width of their own; key heads repeated; odd GeGLU."""

    def __init__(self, width: int, heads: int, kv_heads: int, head: int, wide: int) -> None:
        super().__init__()
        self.head, self.repeat = head, heads // kv_heads
        self.q, self.out = nn.Linear(width, heads * head, bias=False), nn.Linear(heads * head, width, bias=False)
        self.k, self.v = (nn.Linear(width, kv_heads * head, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(width, wide, bias=False) for _ in range(2))
        self.down = nn.Linear(wide, width, bias=False)
        self.before, self.after, self.inner, self.outer = (ShiftedNorm(width) for _ in range(4))
        self.qn, self.kn = ShiftedNorm(head), ShiftedNorm(head)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        y = self.before(x)
        q, k, v = (p(y).unflatten(-1, (-1, self.head)) for p in (self.q, self.k, self.v))
        q, k, v = (t.transpose(1, 2) for t in (self.qn(q), self.kn(k), v))
        k, v = (t.repeat_interleave(self.repeat, 1) for t in (halves(k, cos, sin), v))
        x = x + self.after(self.out(attend(halves(q, cos, sin), k, v, scale=0.11)))
        y = self.inner(x)
        return x + self.outer(self.down(F.gelu(self.gate(y), approximate="tanh") * self.up(y)))


class FirstBlock(nn.Module):
    """Norms after the sums; the weights of q, k and v are one bare parameter; squared ReLU of odd width."""

    def __init__(self, width: int, heads: int, wide: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.bias = nn.Parameter(torch.empty(3 * width, width)), nn.Parameter(torch.empty(3 * width))
        self.out, self.up, self.down = nn.Linear(width, width), nn.Linear(width, wide), nn.Linear(wide, width)
        self.n1, self.n2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.qkv, std=0.2)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        b, s, width = x.shape
        qkv = F.linear(x, self.qkv, self.bias).view(b, s, 3, self.heads, width // self.heads)
        x = self.n1(x + self.out(attend(*qkv.permute(2, 0, 3, 1, 4).unbind(0))))
        return self.n2(x + self.down(F.relu(self.up(x)).square()))


class Turning(nn.Module):
    """Embedding, blocks that are given angles in their own dtype, norm."""

    def __init__(self, width: int, rotary: int, *blocks: nn.Module) -> None:
        super().__init__()
        self.rotary = rotary
        self.embedding, self.layers, self.norm = nn.Embedding(V, width), nn.ModuleList(blocks), nn.LayerNorm(width)

    def body(self, tokens: Tensor, scale: float = 1.0) -> Tensor:
        x = self.embedding(tokens) * scale
        cos, sin = angles(tokens.shape[1], self.rotary, x)
        for layer in self.layers:
            x = layer(x, cos.to(x.dtype), sin.to(x.dtype))
        return self.norm(x)


class NeoX(Turning):
    """GPT-NeoX; its head has a bias."""

    def __init__(self) -> None:
        super().__init__(24, 2, *(NeoXBlock(24, 4, 2) for _ in range(3)))
        self.head = nn.Linear(24, V)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.body(tokens))


class Falcon(Turning):
    """Falcon 7B: three heads of eight; the head is the embedding, read as a function."""

    def __init__(self) -> None:
        super().__init__(24, 8, *(FalconBlock(24, 3) for _ in range(2)))

    def forward(self, tokens: Tensor) -> Tensor:
        return F.linear(self.body(tokens), self.embedding.weight)


class Gemma(Turning):
    """Gemma 2 and 3: a scaled, tied embedding and capped logits."""

    def __init__(self) -> None:
        super().__init__(20, 6, *(GemmaBlock(20, 4, 2, 6, 51) for _ in range(2)))
        self.norm = ShiftedNorm(20)

    def forward(self, tokens: Tensor) -> Tensor:
        logits = F.linear(self.body(tokens, math.sqrt(20)), self.embedding.weight)
        return torch.tanh(logits / 30.0) * 30.0


class First(nn.Module):
    """The first transformer's blocks under learned positions, and a head of several layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(V, 24), nn.Embedding(64, 24)
        self.layers = nn.ModuleList(FirstBlock(24, 4, 51) for _ in range(2))
        self.head = nn.Sequential(nn.Linear(24, 24), nn.GELU(), nn.LayerNorm(24), nn.Linear(24, V))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))[None]
        for layer in self.layers:
            x = layer(x)
        return self.head(x)
