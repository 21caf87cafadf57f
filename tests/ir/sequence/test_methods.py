"""Every sequence method equals attention on one device: forward and all gradients, in float64, on threads."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from fourfold.backends.kernels.block_reference import REFERENCE_BLOCK
from fourfold.ir.comm import Comm
from fourfold.ir.local import together
from fourfold.ir.sequence import METHODS
from fourfold.ir.sequence.method import Job
from fourfold.ir.sequence.rectangles import Softmax
from fourfold.ir.sequence.tokens import Shard, laid

LENGTHS = (13, 1, 40, 3, 7)
WIDTH = 4
SOFTMAXES = {
    "causal": Softmax(0.5, causal=True),
    "full": Softmax(0.5, causal=False),
    "window": Softmax(0.5, causal=True, window=5),
}


def drawn(heads: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, v and the gradient of the output, of all documents one behind the other."""
    generator = torch.Generator().manual_seed(heads * 10 + kv_heads)
    total = sum(LENGTHS)

    def draw(count: int) -> Tensor:
        return torch.randn(total, count, WIDTH, dtype=torch.float64, generator=generator)

    return draw(heads), draw(kv_heads), draw(kv_heads), draw(heads)


def plain(q: Tensor, k: Tensor, v: Tensor, softmax: Softmax) -> Tensor:
    """Attention document by document with a mask, by autograd."""
    group = q.shape[1] // k.shape[1]
    outs, start = [], 0
    for length in LENGTHS:
        rows = slice(start, start + length)
        start += length
        qd, kd, vd = (x[rows].transpose(0, 1) for x in (q, *(x.repeat_interleave(group, 1) for x in (k, v))))
        behind = torch.arange(length)[:, None] - torch.arange(length)
        seen = behind >= 0 if softmax.causal else torch.ones_like(behind, dtype=torch.bool)
        if softmax.window is not None:
            seen &= behind < softmax.window
        scores = (qd @ kd.mT * softmax.scale).masked_fill(~seen, float("-inf"))
        outs.append((scores.softmax(-1) @ vd).transpose(0, 1))
    return torch.cat(outs)


def places(held: Shard) -> Tensor:
    """Where in the packed documents each token of a shard is."""
    starts = list(itertools.accumulate(LENGTHS, initial=0))
    rows = [starts[r.document] + r.start + i * r.step for r in held.runs for i in range(r.count)]
    return torch.tensor(rows, dtype=torch.long)


def degrees(method: str, n: int) -> list[int]:
    """How many ranks may exchange heads."""
    if method == "ulysses":
        return [n]
    return [u for u in range(2, n) if n % u == 0] if method == "usp" else [1]


@pytest.fixture(autouse=True)
def one_thread_a_rank() -> Iterator[None]:
    """Ranks are threads already."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


CASES = [
    (method, layout, n, u)
    for method in METHODS
    for layout in ("contiguous", "zigzag", "striped")
    for n in (1, 2, 3, 4, 8)
    for u in degrees(method, n)
    if method != "whole" or n == 1
]


@pytest.mark.parametrize("softmax", SOFTMAXES)
@pytest.mark.parametrize("heads", ((4, 4), (8, 2)), ids=("mha", "gqa"))
@pytest.mark.parametrize(("method", "layout", "n", "u"), CASES)
def test_it_equals_one_device(method: str, layout: str, n: int, u: int, heads: tuple[int, int], softmax: str) -> None:
    q, k, v, grad = drawn(*heads)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    wanted = plain(*leaves, SOFTMAXES[softmax])
    gradients = torch.autograd.grad(wanted, leaves, grad)
    shards = laid(layout, LENGTHS, n, u)
    job = Job(shards, SOFTMAXES[softmax], ulysses=u)
    how = METHODS[method]

    def work(comm: Comm) -> tuple[Tensor, ...]:
        rows = places(shards[comm.rank])
        out, saved = how.forward(comm, REFERENCE_BLOCK, q[rows], k[rows], v[rows], job)
        return out, *how.backward(comm, REFERENCE_BLOCK, grad[rows], saved, job)

    for rank, found in enumerate(together(n, work)):
        rows = places(shards[rank])
        for one, other in zip(found, (wanted, *gradients), strict=True):
            torch.testing.assert_close(one, other.detach()[rows], rtol=1e-10, atol=1e-10)
