"""Ways to write a block."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.attentions import by_split
from zoo.plain import Block, D, attend


class PostNorm(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = self.n1(x + self.attention(x))
        return self.n2(x + self.mlp(x))


class Parallel(Block):
    """GPT-J and PaLM: one norm, both branches added at once."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.n1(x)
        return x + self.attention(y) + self.mlp(y)


class GateUp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_up, self.down = nn.Linear(D, 4 * D, bias=False), nn.Linear(2 * D, D, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class GLU(GateUp):
    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.glu(self.gate_up(x)))


class Conv1D(nn.Module):
    """The product of HF's GPT-2: weights [in, out]."""

    def __init__(self, wide: int, narrow: int = D) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(narrow, wide) / 5), nn.Parameter(torch.zeros(wide))

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.size()[:-1], self.weight.shape[1])
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(shape)


class ConvAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = Conv1D(3 * D), Conv1D(D)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(attend(*by_split(self.qkv(x))))


class ByHand(nn.Module):
    """A layer norm of sums, means and variances."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.weight = how, nn.Parameter(torch.ones(D))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.sum(-1, keepdim=True) / x.shape[-1]
        if self.how == "var":
            scale = torch.rsqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-5)
        elif self.how == "std":
            scale = 1 / (x.std(dim=-1, keepdim=True) + 1e-5)
        else:
            variance, mean = torch.var_mean(x, dim=-1, keepdim=True, correction=0)
            scale = (variance + 1e-5) ** -0.5
        return ((x - mean) * scale) * self.weight


class HandNorm(Block):
    def __init__(self) -> None:
        super().__init__()
        self.n1, self.n2, self.n3 = ByHand("var"), ByHand("std"), ByHand("var_mean")

    def forward(self, x: Tensor) -> Tensor:
        return self.n3(super().forward(x))


class Upcast(Block):
    """RMSNorm in float32, as Llama's."""

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        y = (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype) * self.n1.weight
        return x + self.attention(y) + self.mlp(self.n2(x))


class InPlace(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.mlp.up(self.n1(x))
        y.mul_(0.5).add_(1.0)
        y.relu_()
        return x + self.attention(self.n2(x)) + self.mlp.down(y)


class NoGrad(Block):
    """A scale that gets no gradient, though its input and weight do elsewhere."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            scale = torch.sigmoid(self.mlp.up(x)).mean(-1, keepdim=True)
        with torch.autocast(x.device.type, enabled=False):
            y = self.n1(x) * scale
        return x + self.attention(y) + self.mlp(self.n2(x)) * torch.tensor(0.5)


class Odd(Block):
    """Ops no table knows, token-wise all the same."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cumsum(self.n1(x), dim=-1)
        return x + self.attention(torch.special.ndtr(y)) + self.mlp(self.n2(x).roll(1, -1))
