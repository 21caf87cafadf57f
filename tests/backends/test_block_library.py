"""The block of cuDNN and our own kernel without a GPU: cuDNN's ops get stand-ins, our kernel the written-out block.

What is proven is ours: which call each rectangle goes to, buckets of rows, keys that stay behind, and what is merged.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fourfold.backends.kernels import block, block_dense
from fourfold.backends.kernels.attention_cudnn import bucket, step
from fourfold.backends.kernels.block import LibraryBlock
from fourfold.backends.kernels.block_reference import REFERENCE_BLOCK
from fourfold.ir.sequence.method import zeros
from fourfold.ir.sequence.rectangles import Rectangle, Seen, Softmax, rectangles
from fourfold.ir.sequence.tokens import laid

HEADS, GROUPS, DIM, SCALE = 4, 2, 8, 0.3
NONE = torch.empty(0)
SHAPES: list[tuple[int, int]] = []


def _whole(q: Tensor, k: Tensor, causal: bool) -> Rectangle:
    SHAPES.append((q.shape[2], k.shape[2]))
    return Rectangle(0, q.shape[2], 0, k.shape[2], high=0 if causal else None)


def _rows(x_1HMD: Tensor) -> Tensor:
    return x_1HMD[0].transpose(0, 1).contiguous()


def _batch(x_MHD: Tensor) -> Tensor:
    return x_MHD.transpose(0, 1)[None]


def forward(q: Tensor, k: Tensor, v: Tensor, *rest: object, scale: float) -> tuple[Tensor, Tensor]:
    """In place of aten's."""
    bias, lse, p, causal, mask = rest
    assert bias is None and lse and p == 0.0 and not mask
    sums = REFERENCE_BLOCK.empty(_rows(q))
    kv = torch.stack((_rows(k), _rows(v)))
    REFERENCE_BLOCK.forward(sums, _rows(q), kv, Seen((_whole(q, k, bool(causal)),)), scale)
    return _batch(sums.out), sums.lse[None, :, :, None]


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *rest: object, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """In place of aten's."""
    *_, rows, keys, p, causal = rest
    assert (rows, keys, p) == (q.shape[2], k.shape[2], 0.0) and lse.shape == (1, HEADS, q.shape[2], 1)
    kv = torch.stack((_rows(k), _rows(v)))
    into = zeros(_rows(q)), zeros(kv)
    seen = Seen((_whole(q, k, bool(causal)),))
    REFERENCE_BLOCK.backward(into, _rows(grad), _rows(q), kv, _rows(out), lse[0, :, :, 0], seen, scale)
    return _batch(into[0]), _batch(into[1][0]), _batch(into[1][1])


@pytest.fixture(autouse=True)
def cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.aten, "_scaled_dot_product_cudnn_attention", forward, raising=False)
    monkeypatch.setattr(torch.ops.aten, "_scaled_dot_product_cudnn_attention_backward", backward, raising=False)
    monkeypatch.setattr(block, "_cudnn_takes", lambda q_THD: True)
    monkeypatch.setattr(block, "LONG", 70)
    SHAPES.clear()


BLOCK = LibraryBlock(
    block._ours_and_dense, block_dense.cudnn_forward, block_dense.cudnn_backward, REFERENCE_BLOCK, takes_delta=False
)


def check(seen: tuple[Rectangle, ...], rows: int, keys: int, *, behind: tuple[int, int] | None = None) -> None:
    """Out, lse and gradients equal the written-out block's, on top of sums that were there.

    behind: from which row and key on nothing is in a rectangle, and is so large that exponentials of its scores are no
    number.
    """
    generator = torch.Generator().manual_seed(rows + keys)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    q, kv, grad = drawn(rows, HEADS, DIM), drawn(2, keys, GROUPS, DIM), drawn(rows, HEADS, DIM)
    if behind is not None:
        q[behind[0] :], kv[0, behind[1] :], grad[behind[0] :] = 1e4, 1e4, 1e6
    found, given_seen = [], Seen(seen)
    for one in (BLOCK, REFERENCE_BLOCK):
        sums = one.empty(q)
        one.forward(sums, q, kv, given_seen, SCALE)
        one.forward(sums, q, kv, given_seen, SCALE)
        into = zeros(q), zeros(kv)
        one.backward(into, grad, q, kv, sums.out, sums.lse, given_seen, SCALE)
        found.append((sums.out, sums.lse, *into))
    for mine, wanted in zip(*found, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rows", (70, 128, 150, 321))
def test_a_causal_square_of_any_length_goes_alone(rows: int) -> None:
    check((Rectangle(3, rows, 5, rows, high=0),), rows + 7, rows + 9)
    assert set(SHAPES) == {(bucket(rows), bucket(rows))}


@pytest.mark.parametrize("high", (0, None))
def test_rows_behind_a_rectangle_do_not_reach_it(high: int | None) -> None:
    check((Rectangle(3, 150, 5, 150, high=high),), 400, 400, behind=(153, 155))


@pytest.mark.parametrize("keys", (70, 128, 150, 321))
def test_the_last_keys_of_a_full_rectangle_stay_behind(keys: int) -> None:
    check((Rectangle(3, 200, 5, keys),), 210, keys + 9)
    assert set(SHAPES) == {(bucket(200), keys - keys % step(keys))}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 500), min_size=1, max_size=4), st.sampled_from(("zigzag", "contiguous")))
def test_ragged_documents_between_two_ranks(lengths: list[int], layout: str) -> None:
    shards = laid(layout, tuple(lengths), 2)
    for mine in shards:
        for theirs in shards:
            seen = rectangles(mine, theirs, Softmax(SCALE, causal=True))
            if seen:
                check(seen, mine.tokens, theirs.tokens)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 3000), min_size=1, max_size=6), st.sampled_from(("zigzag", "contiguous")))
def test_every_pair_is_in_one_call(lengths: list[int], layout: str) -> None:
    mine, theirs = laid(layout, tuple(lengths), 2)
    q = torch.empty(1, HEADS, DIM)
    for seen in (rectangles(mine, mine, Softmax(SCALE, True)), rectangles(theirs, mine, Softmax(SCALE, True))):
        for divide in (block._ours_and_dense, block._packed_and_dense):
            calls = [one for call in divide(q, Seen(seen)) for one in call.seen]
            assert sum(one.pairs for one in calls) == sum(one.pairs for one in seen)
            alone = [call.seen.rectangles for call in divide(q, Seen(seen)) if call.how == "dense"]
            assert all(len(one) == 1 and (one[0].square or one[0].k_count % step(one[0].k_count) == 0) for one in alone)
