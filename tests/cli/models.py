"""Models that tests name on the command line: a small good one, and one for each mistake that capture must name."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fourfold.compiler.models.llama import Llama, LlamaConfig


def tiny(*, layers: int = 2, heads: int = 4, width: int = 64) -> nn.Module:
    return Llama(LlamaConfig(256, width, layers, heads, heads // 2, 2 * width))


def twin() -> nn.Module:
    """As `tiny`, with a head of its own for each key."""
    return Llama(LlamaConfig(256, 64, 2, 4, 4, 128))


class Peeking(nn.Module):
    """Reads a value of its input on the host."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.embedding = nn.Embedding(256, 32)
        self.head = nn.Linear(32, 256)

    def forward(self, tokens_BS: Tensor) -> Tensor:
        x_BSD = self.embedding(tokens_BS)
        if self.how == "item":
            x_BSD = x_BSD * float(x_BSD.sum().item())
        elif x_BSD.sum() > 0:
            x_BSD = x_BSD + 1
        return self.head(x_BSD)


def item() -> nn.Module:
    return Peeking("item")


def branch() -> nn.Module:
    return Peeking("branch")


@torch.library.custom_op("fourfold_tests::twist", mutates_args=())
def twist(x: Tensor) -> Tensor:
    return x.roll(1, -1)


@twist.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Twisted(nn.Module):
    """Uses an op that nobody has a rule for, and that mixes tokens for all one knows."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, 32)
        self.head = nn.Linear(32, 256)

    def forward(self, tokens_BS: Tensor) -> Tensor:
        return self.head(twist(self.embedding(tokens_BS)))


def unknown_op() -> nn.Module:
    return Twisted()


def nothing() -> int:
    return 3
