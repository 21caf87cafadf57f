"""Dealing a batch: every sequence once, none beyond capacity, as many micro-steps on each rank, loads alike."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fourfold.backends.batch.batching import dealt, filled, pack
from fourfold.backends.batch.sequences import digest, documents
from fourfold.hardware.errors import UsageError
from fourfold.ir.sequence.tokens import LAYOUTS, laid

LENGTHS = st.lists(st.integers(1, 100), min_size=1, max_size=60)


@given(lengths=LENGTHS, ranks=st.integers(1, 9), room=st.integers(0, 300))
def test_every_sequence_is_dealt_once_and_fits(lengths: list[int], ranks: int, room: int) -> None:
    capacity = max(lengths) + room
    found = dealt(lengths, ranks=ranks, capacity=capacity)
    steps = [step for rank in found for step in rank]
    assert sorted(i for step in steps for i in step.documents) == list(range(len(lengths)))
    assert all(step.tokens == sum(lengths[i] for i in step.documents) <= capacity for step in steps)
    assert len(found) == ranks and len({len(rank) for rank in found}) == 1
    assert found == dealt(lengths, ranks=ranks, capacity=capacity)


@given(lengths=LENGTHS, ranks=st.integers(1, 9), room=st.integers(0, 300))
def test_micro_steps_are_few_and_alike(lengths: list[int], ranks: int, room: int) -> None:
    """Half full at least on the whole, so at most twice the fewest; where all fit one step, loads are balanced."""
    capacity = max(lengths) + room
    found = dealt(lengths, ranks=ranks, capacity=capacity)
    fewest = -(-sum(lengths) // (capacity * ranks))
    assert len(found[0]) <= 2 * fewest + 1
    if sum(lengths) <= capacity:
        assert len(found[0]) == 1
        loads = [rank[0].tokens for rank in found]
        assert max(loads) - min(loads) <= max(lengths)
    order = [rank[step].tokens for step in range(len(found[0])) for rank in found]
    assert order == sorted(order, reverse=True), "micro-steps run beside others of like size"


def test_equal_sequences_are_dealt_equally() -> None:
    found = dealt([8] * 12, ranks=3, capacity=16)
    assert [[step.tokens for step in rank] for rank in found] == [[16, 16]] * 3


def test_best_fit_saves_a_micro_step() -> None:
    """Balancing puts 3 3 | 2 2 and then finds no room for the last 2 in 6; best fit does."""
    found = dealt([3, 3, 2, 2, 2], ranks=2, capacity=6)
    assert [[step.tokens for step in rank] for rank in found] == [[6], [6]]


def test_a_sequence_beyond_capacity_is_named() -> None:
    with pytest.raises(UsageError, match="sequence 1 has 9 tokens, and a micro-step holds 8"):
        dealt([4, 9], ranks=2, capacity=8)


@given(lengths=st.lists(st.integers(1, 40), min_size=0, max_size=6), bucket=st.sampled_from([1, 4, 8, 12]))
def test_packing_keeps_documents_whole_and_pads_with_ones_that_cost_nothing(lengths: list[int], bucket: int) -> None:
    docs = documents([list(range(1, n + 1)) for n in lengths]) if lengths else ()
    packed = pack(docs, bucket=bucket, device=torch.device("cpu"))
    total, size = sum(lengths), packed.positions.numel()
    assert size % bucket == 0 and 0 < size < total + bucket + (not total) and sum(packed.lengths) == size
    assert packed.tokens[0, :total].tolist() == [t for n in lengths for t in range(1, n + 1)]
    assert packed.positions[:total].tolist() == [i for n in lengths for i in range(n)]
    assert packed.lengths[: len(lengths)] == tuple(lengths)
    ends = [sum(lengths[: i + 1]) - 1 for i in range(len(lengths))]
    assert all(packed.targets[end] == -100 and packed.weights[end] == 0 for end in ends)
    assert not packed.weights[total:].any() and (packed.targets[total:] == -100).all()


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=6).map(tuple),
    st.sampled_from(sorted(LAYOUTS)),
    st.integers(1, 4),
    st.integers(0, 50),
)
def test_every_stored_token_is_as_its_run_says(lengths: tuple[int, ...], layout: str, ranks: int, most: int) -> None:
    docs = documents([(torch.arange(n) + 100 * i, torch.arange(n), torch.rand(n)) for i, n in enumerate(lengths)])
    for held in laid(layout, lengths, ranks):
        found = filled(docs, held, bucket=8, device=torch.device("cpu"), most=most)
        stored = [(docs[run.document], run.start + i * run.step) for run in held.runs for i in range(run.count)]
        rest = found.positions.numel() - len(stored)
        assert found.tokens[0].tolist() == [int(doc.tokens[at]) for doc, at in stored] + [0] * rest
        assert found.positions.tolist() == [at for _, at in stored] + [0] * rest
        assert found.targets.tolist() == [int(doc.targets[at]) for doc, at in stored] + [-100] * rest
        assert found.weights.tolist() == [float(doc.weights[at]) for doc, at in stored] + [0.0] * rest
        assert sum(found.lengths) == found.positions.numel()


def test_labels_are_shifted_once_inside_their_document() -> None:
    (doc,) = documents([([1, 2, 3], [-100, 7, 8], [0.1, 0.2, 0.3])])
    assert doc.targets.tolist() == [7, 8, -100]
    assert doc.weights.tolist() == pytest.approx([0.2, 0.3, 0.0])


def test_the_digest_tells_lengths_from_contents() -> None:
    base, other, longer = (digest(documents(b)) for b in ([[1, 2], [3]], [[1, 2], [4]], [[1], [2, 3]]))
    assert base[0] == other[0] != longer[0]
    assert base[1] != other[1]
