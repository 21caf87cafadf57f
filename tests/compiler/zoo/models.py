"""Ways to write a whole model."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoo.attentions import Fused, by_split
from zoo.plain import CONTEXT, LM, MLP, Attention, Block, D, H, V, attend, heads


class NanoGPT(nn.Module):
    """The layout of nanoGPT: a ModuleDict, a fused qkv, a mask buffer no one reads, a tied head, (logits, loss)."""

    def __init__(self) -> None:
        super().__init__()
        blocks = nn.ModuleList(Block(Fused(by_split)) for _ in range(2))
        for block in blocks:
            mask = torch.tril(torch.ones(CONTEXT, CONTEXT)).view(1, 1, CONTEXT, CONTEXT)
            block.attention.register_buffer("bias", mask)
        parts = {"wte": nn.Embedding(V, D), "wpe": nn.Embedding(CONTEXT, D), "drop": nn.Dropout(0.0), "h": blocks}
        self.transformer = nn.ModuleDict({**parts, "ln_f": nn.LayerNorm(D)})
        self.lm_head = nn.Linear(D, V, bias=False)
        self.transformer.wte.weight = self.lm_head.weight

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> Any:
        _, t = idx.size()
        assert t <= CONTEXT, f"cannot forward {t} tokens"
        pos = torch.arange(0, t, dtype=torch.long, device=idx.device)
        x = self.transformer.drop(self.transformer.wte(idx) + self.transformer.wpe(pos))
        for block in self.transformer.h:
            x = block(x)
        return self.lm_head(self.transformer.ln_f(x)), None


class Tied(LM):
    """Tied head, scaled embedding, soft-capped logits, as Gemma's."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.head.weight = self.embedding.weight

    def embed(self, tokens: Tensor) -> Tensor:
        return super().embed(tokens) * math.sqrt(D)

    def forward(self, tokens: Tensor) -> Tensor:
        logits = super().forward(tokens)
        return torch.tanh(logits / 3.0) * 3.0


class OneBlock(Tied):
    """A tied head without a list: embedding, block and head are one."""

    def __init__(self) -> None:
        super().__init__(depth=1)
        self.layers = nn.ModuleDict({"only": Block()})

    def body(self, x: Tensor) -> Tensor:
        return self.norm(self.layers["only"](x))


class ScaledLogits(LM):
    """A head with a bias, a learned scale, float32 logits."""

    def __init__(self) -> None:
        super().__init__(bias=True)
        self.scale = nn.Parameter(torch.tensor(0.7))

    def forward(self, tokens: Tensor) -> Tensor:
        return (self.scale * super().forward(tokens)).double()


class Sliced(LM):
    """A position parameter, its first rows taken."""

    def __init__(self, lead: bool) -> None:
        super().__init__()
        self.pos = nn.Parameter(torch.randn(*((1,) if lead else ()), CONTEXT, D))

    def embed(self, tokens: Tensor) -> Tensor:
        s = tokens.shape[1]
        return self.embedding(tokens) + (self.pos[:, :s] if self.pos.dim() == 3 else self.pos[:s])


class Offset(LM):
    """Positions [1, S] that count from two, as OPT's; a padding token."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(V, D, padding_idx=3)

    def embed(self, tokens: Tensor) -> Tensor:
        s = tokens.shape[1]
        positions = torch.arange(2, s + 2, device=tokens.device).unsqueeze(0)
        return self.embedding(tokens) + self.positions(positions)


class Sequential(nn.Module):
    """Blocks in an nn.Sequential, MLPs too."""

    def __init__(self) -> None:
        super().__init__()
        mlp = [nn.Sequential(nn.Linear(D, 2 * D), nn.GELU(), nn.Linear(2 * D, D)) for _ in range(3)]
        self.net = nn.Sequential(nn.Embedding(V, D), *(Block(mlp=m) for m in mlp), nn.LayerNorm(D), nn.Linear(D, V))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.net(tokens)


class Listless(nn.Module):
    """Blocks as attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(V, D), nn.Linear(D, V)
        self.one, self.two, self.three = Block(), Block(), Block()

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.three(self.two(self.one(self.embedding(tokens)))))


class Shared(LM):
    """One block called three times (ALBERT)."""

    def __init__(self) -> None:
        super().__init__(depth=1)

    def body(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = self.layers[0](x)
        return self.norm(x)


class TiedAcross(LM):
    """The second block's MLP is the first one's; a norm of the model's is called inside blocks."""

    def __init__(self) -> None:
        super().__init__(depth=3)
        for layer in self.layers[1:]:
            layer.mlp.up.weight = self.layers[0].mlp.up.weight
            layer.n2 = self.norm


class Returns(LM):
    """Logits among other things."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, tokens: Tensor) -> Any:
        hidden = self.body(self.embed(tokens))
        logits = self.head(hidden)
        if self.how == "tuple":
            return logits, hidden
        return {"hidden": hidden, "logits": logits, "loss": None}


class ValueResidual(LM):
    """Each layer adds the first layer's values to its own."""

    def body(self, x: Tensor) -> Tensor:
        first: Tensor | None = None
        for layer in self.layers:
            y, part = layer.n1(x), layer.attention
            q, k, v = (heads(p(y)) for p in (part.q, part.k, part.v))
            first = v if first is None else first
            x = x + part.out(attend(q, k, 0.5 * (v + first)))
            x = x + layer.mlp(layer.n2(x))
        return self.norm(x)


class Checkpointed(LM):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant

    def body(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=self.reentrant)
        return self.norm(x)


class Nested(nn.Module):
    """Stages that hold lists of blocks; the config is an object of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(width=D)
        self.embedding, self.head = nn.Embedding(V, D), nn.Linear(D, V)
        self.stages = nn.ModuleList(nn.ModuleDict({"blocks": nn.ModuleList((Block(), Block()))}) for _ in range(2))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for stage in self.stages:
            for block in stage["blocks"]:
                x = block(x)
        return self.head(x)


class Experts(MLP):
    """Dense routing: every expert's output weighed by a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(D, 2, bias=False)
        self.other = MLP()

    def forward(self, x: Tensor) -> Tensor:
        weights = F.softmax(self.router(x), dim=-1)
        return (torch.stack((super().forward(x), self.other(x)), -1) @ weights.unsqueeze(-1)).squeeze(-1)


class Frozen(LM):
    """Only the attention learns."""

    def __init__(self) -> None:
        super().__init__()
        for name, parameter in self.named_parameters():
            parameter.requires_grad_("attention" in name)


class Torch(nn.Module):
    """nn.MultiheadAttention with its own mask, unused when it is causal."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(D, H, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], device=x.device)
        return self.attention(x, x, x, attn_mask=mask, is_causal=True, need_weights=False)[0]


class Wide(LM):
    """Six heads, width 96, an odd vocabulary."""

    def __init__(self) -> None:
        super().__init__(lambda: Block(Attention(96, 6, 3), MLP(96), 96), d=96, v=251)
