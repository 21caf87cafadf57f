"""Which attention kernel is chosen for a call, and how documents are grouped for it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fourfold.backends.kernels.attention import choose
from fourfold.backends.kernels.attention_case import Case, Softmax
from fourfold.backends.kernels.attention_cudnn import Stretch, bucket, pieces, worth
from fourfold.backends.kernels.documents import Documents, Span, spans


def hopper(lengths: tuple[int, ...], **changes: object) -> Case:
    """A training call on a Hopper GPU."""
    case = Case("cuda", (9, 0), torch.bfloat16, 32, 8, 128, lengths, Softmax(0.1, True, None), False)
    return replace(case, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("case", "name"),
    (
        (hopper((8192,) * 4), "aten_cudnn"),
        (hopper((2048,)), "aten_cudnn"),
        (hopper((5000, 8192, 4097)), "aten_cudnn"),
        (hopper((65536, 16384, *(2048,) * 16, *(500,) * 3)), "mixed"),
        (hopper((100, 700, 90, 1)), "triton"),
        (hopper((4095, 2047, 3000)), "triton"),
        (hopper((8192, 700, 90)), "mixed"),
        (hopper((100, 700, 90, 1), capability=(8, 0)), "aten_flash"),
        (hopper((1,) * 8192), "triton"),
        (hopper((8192,) * 4, softmax=Softmax(0.1, True, 1024)), "triton"),
        (hopper((8192,) * 4, deterministic=True), "triton"),
        (hopper((8192,) * 4, capability=(8, 0)), "aten_flash"),
        (hopper((8192,) * 4, head_dim=256), "aten_flash"),
        (hopper((5000, 8192), softmax=Softmax(0.1, False, None)), "triton"),
        (hopper((8192,), dtype=torch.float32), "triton"),
        (hopper((8192,), head_dim=100), "triton"),
        (hopper((8192,), device="rocm"), "triton"),
        (hopper(()), "reference"),
        (hopper((8,), device="cpu", dtype=torch.float32), "aten_cpu_flash"),
        (hopper((8,), device="cpu", softmax=Softmax(0.1, True, 4)), "reference"),
    ),
)
def test_which_kernel_is_chosen(case: Case, name: str) -> None:
    assert choose(case).name == name


@given(st.lists(st.sampled_from((0, 1, 300, 511, 512, 2048, 4096, 5000)), max_size=30).map(tuple))
def test_spans_and_pieces_cover_every_token_once(lengths: tuple[int, ...]) -> None:
    kept = tuple(length for length in lengths if length)
    rebuilt = [length for span in spans(lengths) for length in (span.length,) * span.count]
    assert tuple(rebuilt) == kept
    token = document = 0
    for piece in pieces(kept):
        if isinstance(piece, Stretch):
            part = kept[piece.first : piece.stop]
            assert (piece.first, piece.start) == (document, token) and piece.longest == max(part)
            assert piece.end - piece.start == sum(part)
            token, document = piece.end, piece.stop
        else:
            assert worth(piece) and piece.start == token
            token, document = token + piece.tokens, document + piece.count
    assert (token, document) == (sum(kept), len(kept))


@given(st.integers(1, 1 << 20))
def test_buckets_are_few_and_add_little(length: int) -> None:
    padded = bucket(length)
    assert length <= padded < length + max(64, length / 16 + 1) and bucket(padded) == padded
    assert spans((length,)).__next__() == Span(0, length, 1)


def test_offsets_are_where_documents_start() -> None:
    documents = Documents.of((3, 0, 2), "cpu")
    assert documents.lengths == (3, 2) and documents.longest == 3 and documents.tokens == 5
    assert documents.offsets.tolist() == [0, 3, 5] and documents.offsets.dtype == torch.int32
