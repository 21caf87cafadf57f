"""Runs our block kernel in Triton's interpreter beside the written-out one, and prints {case: {what: error}} as JSON.

A program, not a test: TRITON_INTERPRET=1 has to be set before Triton is loaded. `few` leaves out most cases.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import astuple, dataclass

import torch
from torch import Tensor

from fourfold.backends.kernels import block_reference, block_triton_merge
from fourfold.backends.kernels.attention_case import Softmax as Scores
from fourfold.backends.kernels.block_reference import REFERENCE_BLOCK
from fourfold.backends.kernels.block_tiles import Tile, Tiles
from fourfold.backends.kernels.block_triton import TritonBlock
from fourfold.backends.kernels.block_triton_packed import fresh_backward, fresh_forward
from fourfold.ir.sequence.method import Block, delta, zeros
from fourfold.ir.sequence.rectangles import Seen, Softmax, rectangles
from fourfold.ir.sequence.tokens import Shard, joined, laid

SOFTMAXES = {
    "causal": Softmax(0.3, causal=True),
    "full": Softmax(0.3, causal=False),
    "window": Softmax(0.3, causal=True, window=11),
    "wide window": Softmax(0.3, causal=False, window=30),
}
LENGTHS = (37, 1, 52, 3)
RANKS = 2
BLOCK = TritonBlock(Tiles(Tile(32, 16, 4, 1), Tile(16, 32, 4, 1), Tile(16, 32, 4, 1)))


@dataclass(frozen=True, slots=True)
class Case:
    """The last rank's queries over the keys of all, one rank after the other.

    gathered: over all keys at once; others: only over those of the other ranks, so that some rows see no key.
    """

    layout: str
    softmax: str
    heads: tuple[int, int, int] = (4, 2, 24)
    lengths: tuple[int, ...] = LENGTHS
    gathered: bool = False
    others: bool = False

    @property
    def name(self) -> str:
        """Of the case."""
        return " ".join(map(str, astuple(self)))

    @property
    def held(self) -> tuple[Shard, ...]:
        """The sets of keys."""
        shards = laid(self.layout, self.lengths, RANKS)
        return (joined(shards),) if self.gathered else shards[: RANKS - self.others]


FEW = (Case("zigzag", "causal"), Case("contiguous", "window", (2, 2, 16), (41, 9), others=True))
ALL = (
    *(Case(*pair) for pair in itertools.product(("contiguous", "zigzag", "striped"), SOFTMAXES)),
    Case("zigzag", "causal", gathered=True),
    Case("striped", "causal", gathered=True),
    Case("zigzag", "full", others=True),
    Case("contiguous", "causal", (4, 2, 16), others=True),
    Case("contiguous", "full", (3, 1, 64), (40,)),
    Case("contiguous", "causal", (2, 1, 96), (20, 13)),
    Case("contiguous", "causal", (2, 2, 128), (1,)),
)


def main() -> None:
    """All cases, or a few."""
    cases = FEW if sys.argv[1:] == ["few"] else ALL
    found = {case.name: dict(errors(case)) for case in cases} | {"merge": merging()}
    found |= {f"packed {name}": packed(softmax) for name, softmax in SOFTMAXES.items()}
    print(json.dumps(found))


def errors(case: Case) -> Iterator[tuple[str, float]]:
    """The largest difference of each result; the untouched rest of every buffer counts too."""
    q, grad, *kvs = drawn(case)
    wanted = results(REFERENCE_BLOCK, case, q, grad, kvs)
    for name, one, other in zip(("out", "lse", "dq", "dk dv"), results(BLOCK, case, q, grad, kvs), wanted, strict=True):
        yield name, apart(one, other)
    again = results(BLOCK, case, q, grad, kvs, by_delta=True)
    yield "from delta", max(apart(one, other) for one, other in zip(again, wanted, strict=True))


def drawn(case: Case) -> list[Tensor]:
    """q and the gradient of out of the last rank, and the keys and values it meets, set by set."""
    generator = torch.Generator().manual_seed(0)
    heads, groups, width = case.heads
    shards = laid(case.layout, case.lengths, RANKS)
    sizes = [(shards[-1].tokens, heads, width)] * 2 + [(2, keys.tokens, groups, width) for keys in case.held]
    return [torch.randn(size, generator=generator) for size in sizes]


def results(
    block: Block, case: Case, q: Tensor, grad: Tensor, kvs: list[Tensor], *, by_delta: bool = False
) -> tuple[Tensor, ...]:
    """Out, lse and all gradients; each set of keys goes on from the sums and the gradients before."""
    queries, softmax = laid(case.layout, case.lengths, RANKS)[-1], SOFTMAXES[case.softmax]
    sums, dq, dkvs = block.empty(q), zeros(q), [zeros(kv) + 1 for kv in kvs]
    seen = [Seen(rectangles(queries, keys, softmax)) for keys in case.held]
    for kv, one in zip(kvs, seen, strict=True):
        block.forward(sums, q, kv, one, softmax.scale)
    rest = delta(grad, sums.out) if by_delta else sums.out
    for kv, dkv, one in zip(kvs, dkvs, seen, strict=True):
        block.backward((dq, dkv), grad, q, kv, rest, sums.lse, one, softmax.scale)
    return sums.out, sums.lse, dq, torch.cat(dkvs, 1)


def packed(softmax: Softmax) -> dict[str, float]:
    """Documents over themselves, into tensors that hold no number yet, beside the written-out block."""
    generator = torch.Generator().manual_seed(2)
    (held,) = laid("contiguous", LENGTHS, 1)
    q, grad = (torch.randn((held.tokens, 4, 24), generator=generator) for _ in range(2))
    kv = torch.randn((2, held.tokens, 2, 24), generator=generator)
    sums, seen = REFERENCE_BLOCK.empty(q), Seen(rectangles(held, held, softmax))
    REFERENCE_BLOCK.forward(sums, q, kv, seen, softmax.scale)
    into = zeros(q), zeros(kv)
    REFERENCE_BLOCK.backward(into, grad, q, kv, sums.out, sums.lse, seen, softmax.scale)
    out, lse, dq, dkv = (torch.full_like(x, torch.nan) for x in (sums.out, sums.lse, *into))
    scores = Scores(softmax.scale, softmax.causal, softmax.window)
    fresh_forward(q, kv[0], kv[1], out, lse, LENGTHS, scores, BLOCK.tiles)
    fresh_backward(grad, q, kv[0], kv[1], out, lse, (dq, dkv[0], dkv[1]), LENGTHS, scores, BLOCK.tiles)
    pairs = ((out, sums.out), (lse, sums.lse), (dq, into[0]), (dkv, into[1]))
    return {name: apart(*pair) for name, pair in zip(("out", "lse", "dq", "dkv"), pairs, strict=True)}


def merging() -> dict[str, float]:
    """Rows of a larger sum, with what is added in another order of strides; either side and both without keys."""
    generator = torch.Generator().manual_seed(1)
    out, lse = torch.randn(70, 3, 24, generator=generator), 30 * torch.randn(3, 90, generator=generator)
    more = torch.randn(3, 70, 24, generator=generator).transpose(0, 1)
    more_lse = 30 * torch.randn(3, 70, generator=generator)
    lse[:, 3], more_lse[:, 5] = -torch.inf, -torch.inf
    lse[:, 7] = more_lse[:, 7] = -torch.inf
    ours, wanted = (out.clone(), lse.clone()), (out.clone(), lse.clone())
    block_triton_merge.mix(ours[0], ours[1][:, :70], more, more_lse)
    block_reference.mix(wanted[0], wanted[1][:, :70], more, more_lse)
    return {name: apart(one, other) for name, one, other in zip(("out", "lse"), ours, wanted, strict=True)}


def apart(one: Tensor, other: Tensor) -> float:
    """The largest difference; infinite where only one of the two is."""
    if not torch.equal(one.isfinite(), other.isfinite()):
        return float("inf")
    return float((one - other)[other.isfinite()].abs().amax()) if other.isfinite().any() else 0.0


if __name__ == "__main__":
    main()
