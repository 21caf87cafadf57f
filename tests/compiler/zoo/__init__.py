"""Small plain modules, each with something a user's model may have: what is accepted, and what is refused and why."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from zoo import attentions as a
from zoo import blocks as b
from zoo import families as f
from zoo import models as m
from zoo.plain import LM, Attention, Block
from zoo.refused import REFUSED

__all__ = ["ACCEPTED", "REFUSED"]


def with_attention(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: LM(lambda: Block(make()))


def with_mlp(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: LM(lambda: Block(mlp=make()))


ACCEPTED: dict[str, Callable[[], nn.Module]] = {
    "plain": LM,
    "post-norm": lambda: LM(b.PostNorm),
    "parallel": lambda: LM(b.Parallel),
    "odd-widths": m.Wide,
    "grouped": with_attention(lambda: Attention(kv=2)),
    "multi-query": with_attention(lambda: Attention(kv=1)),
    "multi-query-expanded": with_attention(lambda: a.MultiQuery(kv=1)),
    "repeated-heads": with_attention(lambda: a.Repeated(kv=2)),
    "expanded-heads": with_attention(lambda: a.Expanded(kv=2)),
    "partial-rotary": with_attention(a.Rotary),
    "interleaved-rotary": with_attention(a.Interleaved),
    "rotary-tables": with_attention(a.TableRotary),
    "qk-norm": with_attention(a.QKNorm),
    "einsum": with_attention(a.Einsum),
    "qkv-split": with_attention(lambda: a.Fused(a.by_split)),
    "qkv-unbind": with_attention(lambda: a.Fused(a.by_unbind, bias=False)),
    "qkv-permute": with_attention(lambda: a.Fused(a.by_permute)),
    "qkv-by-head": with_attention(lambda: a.Fused(a.by_head)),
    "qkv-by-head-chunk": with_attention(lambda: a.Fused(a.by_head_chunk)),
    "conv1d": with_attention(b.ConvAttention),
    "torch-attention": with_attention(m.Torch),
    "gate-up": with_mlp(b.GateUp),
    "glu": with_mlp(b.GLU),
    "experts": with_mlp(m.Experts),
    "hand-norm": lambda: LM(b.HandNorm),
    "upcast": lambda: LM(b.Upcast),
    "in-place": lambda: LM(b.InPlace),
    "no-grad": lambda: LM(b.NoGrad),
    "unknown-ops": lambda: LM(b.Odd),
    "nano-gpt": m.NanoGPT,
    "tied": m.Tied,
    "one-block": m.OneBlock,
    "scaled-logits": m.ScaledLogits,
    "position-slice": lambda: m.Sliced(False),
    "position-slice-batch": lambda: m.Sliced(True),
    "position-offset": m.Offset,
    "sequential": m.Sequential,
    "no-list": m.Listless,
    "nested-lists": m.Nested,
    "called-thrice": m.Shared,
    "tied-across": m.TiedAcross,
    "returns-tuple": lambda: m.Returns("tuple"),
    "returns-dict": lambda: m.Returns("dict"),
    "neox": f.NeoX,
    "falcon": f.Falcon,
    "gemma": f.Gemma,
    "first-transformer": f.First,
    "value-residual": m.ValueResidual,
    "checkpointed": lambda: m.Checkpointed(False),
    "checkpointed-reentrant": lambda: m.Checkpointed(True),
    "frozen": m.Frozen,
}
