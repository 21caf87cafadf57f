"""The blocks that benchmarks/block_kernels.py times: those of a Llama-8B layer, and small ones to check."""

from __future__ import annotations

from dataclasses import dataclass

from fourfold.ir.sequence.rectangles import Seen, Softmax, rectangles
from fourfold.ir.sequence.tokens import laid

K = 1024


@dataclass(frozen=True, slots=True)
class Shape:
    """What queries see of as many keys: documents of a layout, on the rank and from the rank that `pair` names."""

    name: str
    lengths: tuple[int, ...]
    causal: bool = True
    window: int | None = None
    layout: str = "contiguous"
    ranks: int = 1
    pair: tuple[int, int] = (0, 0)

    @property
    def seen(self) -> Seen:
        """The rectangles of the pair of ranks."""
        shards = laid(self.layout, self.lengths, self.ranks)
        softmax = Softmax(1.0, self.causal, self.window)
        return Seen(rectangles(shards[self.pair[0]], shards[self.pair[1]], softmax))

    @property
    def counts(self) -> tuple[int, int]:
        """Rows and keys."""
        rows, keys = (laid(self.layout, self.lengths, self.ranks)[rank].tokens for rank in self.pair)
        return rows, keys


@dataclass(frozen=True, slots=True)
class Heads:
    """Query heads, key/value heads, head dimension."""

    queries: int
    keys: int
    width: int


MIXED = (2048, 512, 512, 512, 512) * 8
GPU_SHAPES = (
    Shape("16K causal", (16 * K,)),
    Shape("16K full", (16 * K,), causal=False),
    Shape("32K causal", (32 * K,)),
    Shape("32K full", (32 * K,), causal=False),
    Shape("packed 2K and 512", MIXED),
    Shape("packed 512", (512,) * 64),
    Shape("window 4K of 32K", (32 * K,), window=4 * K),
    Shape("striped 4, next rank", (64 * K,), layout="striped", ranks=4, pair=(1, 2)),
    Shape("zigzag 4, packed 2K", (2048,) * 32, layout="zigzag", ranks=4, pair=(1, 1)),
    Shape("64K causal", (64 * K,)),
    Shape("64K full", (64 * K,), causal=False),
)
SMALL = (
    Shape("causal", (200, 57)),
    Shape("full", (200, 57), causal=False),
    Shape("window", (200, 57), window=33),
    Shape("striped", (200, 157), layout="striped", ranks=2, pair=(1, 0)),
)
TOY = (Shape("causal", (40, 9)), Shape("window", (40, 9), window=7))
LLAMA, LITTLE = Heads(32, 8, 128), Heads(4, 2, 24)
