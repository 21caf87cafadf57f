"""Every sequence method equals attention on one device: forward and all gradients, in float64, on threads."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from _pytest.mark.structures import ParameterSet
from torch import Tensor

from fourfold.backends.kernels.block_reference import REFERENCE_BLOCK, ReferenceBlock
from fourfold.ir.comm import Comm
from fourfold.ir.local import together
from fourfold.ir.sequence import METHODS
from fourfold.ir.sequence.method import Block, Job
from fourfold.ir.sequence.rectangles import Softmax
from fourfold.ir.sequence.tokens import LAYOUTS, Shard, laid

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


Given = tuple[Tensor, Tensor, Tensor, Tensor]


def shared(method: str, job: Job, given: Given, block: Block = REFERENCE_BLOCK) -> tuple[tuple[Tensor, ...], ...]:
    """(out, dq, dk, dv) of every rank."""

    def work(comm: Comm) -> tuple[Tensor, ...]:
        q, k, v, grad = (x[places(job.shards[comm.rank])] for x in given)
        out, saved = METHODS[method].forward(comm, block, q, k, v, job)
        return out, *METHODS[method].backward(comm, block, grad, saved, job)

    return together(len(job.shards), work)


def check(method: str, job: Job, given: Given, block: Block = REFERENCE_BLOCK, *, near: float = 1e-10) -> None:
    """Outputs and gradients on every rank are those of one device."""
    leaves = [x.clone().requires_grad_() for x in given[:3]]
    wanted = plain(*leaves, job.softmax)
    gradients = torch.autograd.grad(wanted, leaves, given[3])
    for rank, found in enumerate(shared(method, job, given, block)):
        rows = places(job.shards[rank])
        for one, other in zip(found, (wanted, *gradients), strict=True):
            torch.testing.assert_close(one, other.detach()[rows], rtol=near, atol=near)


def grid() -> list[ParameterSet]:
    """Every method, layout, degree and softmax; on 8 ranks, windows and slow methods are left to the long run."""
    found = []
    for method, layout, n, softmax in itertools.product(METHODS, LAYOUTS, (1, 2, 3, 4, 8), SOFTMAXES):
        long = n == 8 and (softmax == "window" or method in ("rsa", "usp"))
        degrees_here = degrees(method, n) if method != "whole" or n == 1 else []
        marks = [pytest.mark.slow] if long else []
        found += [pytest.param(method, layout, n, u, softmax, marks=marks) for u in degrees_here]
    return found


@pytest.mark.parametrize("heads", ((4, 4), (8, 2)), ids=("mha", "gqa"))
@pytest.mark.parametrize(("method", "layout", "n", "u", "softmax"), grid())
def test_it_equals_one_device(method: str, layout: str, n: int, u: int, softmax: str, heads: tuple[int, int]) -> None:
    check(method, Job(laid(layout, LENGTHS, n, u), SOFTMAXES[softmax], ulysses=u), drawn(*heads))


SPLITS = [(method, n, u) for n in (4, 8) for method, u in (("ulysses", n), *(("usp", u) for u in (2, 4) if u < n))]


@pytest.mark.parametrize("heads", ((6, 2), (5, 5), (3, 1)), ids=str)
@pytest.mark.parametrize(("method", "n", "u"), SPLITS)
def test_heads_that_no_rank_count_divides(method: str, n: int, u: int, heads: tuple[int, int]) -> None:
    """Uneven shares, key/value heads that several ranks read, ranks without any head."""
    check(method, Job(laid("zigzag", LENGTHS, n, u), SOFTMAXES["causal"], ulysses=u), drawn(*heads))


@pytest.mark.parametrize("method", ("ring", "token_ring", "gather_kv", "ulysses"))
def test_a_kernel_that_asks_for_out_finds_the_same(method: str) -> None:
    u = 3 if method == "ulysses" else 1
    job = Job(laid("zigzag", LENGTHS, 3, u), SOFTMAXES["causal"], ulysses=u)
    check(method, job, drawn(8, 2), ReferenceBlock(takes_delta=False))


MANY = [(method, u) for method in METHODS if method != "whole" for u in degrees(method, 4)]


@pytest.mark.parametrize("softmax", SOFTMAXES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("method", "u"), MANY)
def test_where_all_scores_are_zero_it_is_the_mean_of_visible_places(
    method: str, u: int, layout: str, softmax: str
) -> None:
    """Values that say where they are: a permutation goes unseen in random ones, but not here."""
    total, how = sum(LENGTHS), SOFTMAXES[softmax]
    zero = torch.zeros(total, 4, WIDTH, dtype=torch.float64)
    v = torch.arange(total, dtype=torch.float64)[:, None, None].expand(total, 4, WIDTH)
    wanted, start = [], 0
    for length in LENGTHS:
        for i in range(length):
            first = 0 if how.window is None else max(0, i - how.window + 1)
            last = i if how.causal else length - 1
            wanted.append(start + (first + last) / 2)
        start += length
    job = Job(laid(layout, LENGTHS, 4, u), how, ulysses=u)

    def work(comm: Comm) -> Tensor:
        rows = places(job.shards[comm.rank])
        return METHODS[method].forward(comm, REFERENCE_BLOCK, zero[rows], zero[rows], v[rows], job)[0]

    for rank, found in enumerate(together(4, work)):
        expected = torch.tensor(wanted, dtype=torch.float64)[places(job.shards[rank])]
        torch.testing.assert_close(found, expected[:, None, None].expand_as(found), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("method", "u"), MANY)
def test_scores_far_apart_are_no_nan(method: str, u: int) -> None:
    """Scores of -1e4 and 1e4 side by side: weights of 0 and 1, and differences of lse whose exp overflows."""
    q, k, v, grad = drawn(4, 2)
    signs = torch.where(torch.arange(len(k)) % 3 == 0, 1.0, -1.0).double()
    given = (torch.full_like(q, 50.0), 100.0 * signs[:, None, None] * torch.ones_like(k), v, grad)
    job = Job(laid("zigzag", LENGTHS, 4, u), SOFTMAXES["causal"], ulysses=u)
    # An lse of 1e4 has 12 digits behind the point, and keys of 100 take two of them.
    check(method, job, given, near=1e-8)
    for found in shared(method, job, tuple(x.float() for x in given)):  # type: ignore[arg-type]
        assert all(x.isfinite().all() for x in found)
