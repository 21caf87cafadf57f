"""A sequence that goes through chunk by chunk equals the sequence as one: its keys are carried, gradients flow back."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from fourfold.backends.kernels.block_reference import REFERENCE_BLOCK
from fourfold.ir.batch_rules import CHUNKED
from fourfold.ir.comm import Comm
from fourfold.ir.local import together
from fourfold.ir.sequence import METHODS
from fourfold.ir.sequence.method import Carried, Job
from fourfold.ir.sequence.rectangles import Softmax
from fourfold.ir.sequence.tokens import Shard, joined, laid, shifted

SOFTMAXES = {"causal": Softmax(0.5, causal=True), "window": Softmax(0.5, causal=True, window=9)}


def plain(q: Tensor, k: Tensor, v: Tensor, softmax: Softmax) -> Tensor:
    """Attention of one document, by autograd."""
    group, length = q.shape[1] // k.shape[1], len(q)
    qd, kd, vd = (x.transpose(0, 1) for x in (q, *(x.repeat_interleave(group, 1) for x in (k, v))))
    behind = torch.arange(length)[:, None] - torch.arange(length)
    seen = (behind >= 0) & (behind < (softmax.window or length))
    return ((qd @ kd.mT * softmax.scale).masked_fill(~seen, float("-inf")).softmax(-1) @ vd).transpose(0, 1)


def chunks(cuts: tuple[int, ...], n: int) -> list[tuple[Shard, ...]]:
    """What each rank holds of each chunk."""
    return [tuple(shifted(one, (a,)) for one in laid("zigzag", (b - a,), n)) for a, b in pairwise(cuts)]


def rows(held: Shard) -> Tensor:
    return torch.tensor([r.start + i * r.step for r in held.runs for i in range(r.count)], dtype=torch.long)


@pytest.mark.parametrize("softmax", SOFTMAXES)
@pytest.mark.parametrize("n", (1, 2, 3))
@pytest.mark.parametrize("method", CHUNKED)
@pytest.mark.parametrize("cuts", ((0, 24), (0, 10, 20, 24), (0, 1, 17, 18, 24)), ids=str)
def test_chunks_equal_the_whole(cuts: tuple[int, ...], method: str, n: int, softmax: str) -> None:
    generator = torch.Generator().manual_seed(len(cuts))
    q, k, v, grad = (torch.randn(24, h, 4, dtype=torch.float64, generator=generator) for h in (4, 2, 2, 4))
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    how, parts = SOFTMAXES[softmax], chunks(cuts, n)
    wanted = plain(*leaves, how)
    gradients = torch.autograd.grad(wanted, leaves, grad)

    def work(comm: Comm) -> list[tuple[Tensor, ...]]:
        carried = Carried(sum(part[comm.rank].tokens for part in parts))
        jobs = [
            Job(part, how, earlier=tuple(map(joined, zip(*parts[:i], strict=True))) if i else (), carried=carried)
            for i, part in enumerate(parts)
        ]
        jobs = [job if job.earlier else Job(job.shards, how, earlier=(Shard(()),) * n, carried=carried) for job in jobs]
        done = []
        for job in [*jobs, *jobs]:  # As dropped chunks do, each goes forward twice.
            mine = rows(job.shards[comm.rank])
            out, saved = METHODS[method].forward(comm, REFERENCE_BLOCK, q[mine], k[mine], v[mine], job)
            done.append((mine, job, out, (saved[0], None, *saved[2:])))
        found = []
        for mine, job, out, saved in reversed(done[len(jobs) :]):
            assert carried.kv is not None
            kept = (saved[0], carried.kv[:, : job.keys(comm.rank).tokens], *saved[2:])
            found.append(
                (mine, out, *METHODS[method].backward(comm, REFERENCE_BLOCK, grad[mine], kept, job))  # type: ignore[arg-type]
            )
        return found

    for found in together(n, work):
        for mine, *tensors in found:
            for one, other in zip(tensors, (wanted, *gradients), strict=True):
                torch.testing.assert_close(one, other.detach()[mine], rtol=1e-10, atol=1e-10)
