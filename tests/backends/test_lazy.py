"""Batches read by piece: the same tensors as from whole documents, each rank its own tokens, one error for all."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fourfold.backends.batch import lazy
from fourfold.backends.batch.batching import filled
from fourfold.backends.batch.placing import turns
from fourfold.backends.batch.sequences import Limits, documents
from fourfold.backends.communication.aside import Aside
from fourfold.backends.communication.processes import run
from fourfold.hardware.errors import FourfoldError, UsageError
from fourfold.ir.batch import BatchPlan, Piece
from fourfold.ir.sequence.tokens import Run, laid

LIMITS = Limits(tokens=100, labels=100, positions=64)


@dataclass
class Kept:
    """A source over a batch in memory; it counts what it is asked for."""

    batch: Sequence[Any]
    targets: Sequence[float] | None = None
    identity: str = "kept"
    asked: list[tuple[int, int, int]] = field(default_factory=list)

    @property
    def lengths(self) -> list[int]:
        return [len(item["tokens"] if isinstance(item, dict) else item) for item in self.batch]

    def read(self, sequence: int, start: int, stop: int) -> Any:
        self.asked.append((sequence, start, stop))
        item = self.batch[sequence]
        return {k: v[start:stop] for k, v in item.items()} if isinstance(item, dict) else item[start:stop]


def full(lengths: Sequence[int]) -> Kept:
    """With labels, some of them none, and weights."""
    source = random.Random(0)
    batch = []
    for length in lengths:
        tokens = [source.randrange(100) for _ in range(length)]
        labels = [t if source.random() < 0.8 else -100 for t in tokens]
        weights = [source.choice([0.0, 0.5, 2.0]) for _ in tokens]
        batch.append({"tokens": tokens, "labels": labels, "weights": weights})
    return Kept(batch, [float(doc.weights.double().sum()) for doc in documents(batch)])


@given(st.integers(1, 30), st.data())
def test_a_part_is_the_document_wherever_it_was_read(length: int, data: st.DataObject) -> None:
    source = full([length])
    (doc,) = documents(source.batch)
    cuts = sorted(data.draw(st.sets(st.integers(0, length), min_size=2)) | {0})
    spans = list(zip(cuts[:-1:2], cuts[1::2], strict=False))
    part = lazy.portion(source, 0, spans, LIMITS)
    assert len(part) == len(doc)
    for start, stop in spans:
        for step in (1, 2, 3):
            # A run asks for count * step from its start, which may lie past the end.
            count = -(-(stop - start) // step)
            there = slice(start, min(start + count * step, stop), step)
            for mine, whole in zip(
                (part.tokens, part.targets, part.weights), (doc.tokens, doc.targets, doc.weights), strict=True
            ):
                assert torch.equal(mine[there], whole[there]), (start, stop, step)
    unread = next((i for i in range(length) if not any(a <= i < b for a, b in spans)), None)
    if unread is not None:
        with pytest.raises(IndexError, match=f"tokens {unread} to {unread + 1} were not read"):
            part.tokens[unread : unread + 1]


@pytest.mark.parametrize("layout", ("contiguous", "zigzag", "striped"))
def test_shares_are_packed_alike(layout: str) -> None:
    lengths, ranks = (13, 1, 9, 30, 2), 3
    source = full(lengths)
    shards = laid(layout, lengths, ranks)
    for rank, held in enumerate(shards):
        parts = [lazy.portion(source, i, lazy.merged(held.by_document.get(i, ())), LIMITS) for i in range(len(lengths))]
        where: dict[str, Any] = {"bucket": 4, "device": torch.device("cpu")}
        lazily = filled(parts, shards[rank], **where)  # type: ignore[arg-type]
        whole = filled(documents(source.batch), shards[rank], **where)
        for name in ("tokens", "positions", "targets", "weights"):
            assert torch.equal(getattr(lazily, name), getattr(whole, name)), (rank, name)
        assert lazily.lengths == whole.lengths


@given(
    st.lists(
        st.builds(Run, st.just(0), st.integers(0, 40), st.integers(1, 9), st.integers(1, 3), st.just(0)), min_size=1
    )
)
def test_spans_hold_every_token_of_the_runs(runs: list[Run]) -> None:
    spans = lazy.merged(runs)
    read = Counter(i for start, stop in spans for i in range(start, stop))
    every = {i for run in runs for i in range(run.start, run.start + run.count * run.step, run.step)}
    assert every <= set(read) and set(read.values()) == {1}
    if all(run.step == 1 for run in runs):
        assert every == set(read)


LENGTHS = (40, 9, 30, 1)
PLACED = BatchPlan(
    "by hand",
    LENGTHS,
    2,
    64,
    (Piece(0, 0, 40, 0, (0, 1), "ring"), Piece(1, 0, 9, 1, (0,)), Piece(2, 0, 30, 1, (1,)), Piece(3, 0, 1, 1, (1,))),
)


def reading(rank: int) -> tuple[list[tuple[int, int, int]], list[list[int]]]:
    source, aside = full(LENGTHS), Aside.here()
    assert lazy.agreed_lengths(source, LIMITS, aside) == LENGTHS
    assert source.asked == [], "what is compared is not read"
    parts = lazy.parts(source, lazy.spans_of(turns(PLACED, rank, every=False)), LIMITS, aside)
    tensors = []
    for _, teams in PLACED.of(rank):
        for team in teams:
            docs: Any = [parts[piece.sequence] for piece in team.pieces]
            packed = filled(docs, team.shards()[team.ranks.index(rank)], bucket=1, device=aside.device)
            tensors.append(packed.tokens[0].tolist())
    return source.asked, tensors


def test_each_rank_reads_its_own_tokens_only() -> None:
    batch = [item["tokens"] for item in full(LENGTHS).batch]
    answers = run(reading, 2, timeout=60)
    for rank, (asked, tensors) in enumerate(answers):
        held = sum(tokens for (one, _), tokens in PLACED.held.items() if one == rank)
        spans = sum(map(len, lazy.spans_of(turns(PLACED, rank, every=False)).values()))
        assert held <= sum(stop - start for _, start, stop in asked) <= held + spans
        shard = laid("zigzag", (40,), 2)[rank]
        first = [batch[0][r.start + i] for r in shard.runs for i in range(r.count)]
        assert tensors[0] == first
        assert tensors[1:] == ([batch[1]] if rank == 0 else [[*batch[2], *batch[3]]])


class Broken(Kept):
    def read(self, sequence: int, start: int, stop: int) -> Any:
        raise OSError("the disk is gone")


def told(rank: int, other: Kept) -> tuple[str, str]:
    """Rank 1 has another source."""
    source, aside = (full(LENGTHS) if rank == 0 else other), Aside.here()
    try:
        lazy.agreed_lengths(source, LIMITS, aside)
        lazy.parts(source, lazy.spans_of(turns(PLACED, rank, every=False)), LIMITS, aside)
    except FourfoldError as error:
        return type(error).__name__, str(error)
    return "none", ""


GOOD = full(LENGTHS)


@pytest.mark.parametrize(
    ("other", "first", "second"),
    [
        (full((*LENGTHS[:3], 2)), "RunError: rank 1 passed other lengths to step()", ""),
        (replace(GOOD, identity="new"), "RunError: rank 1 passed other identity or targets", ""),
        (replace(GOOD, targets=[*GOOD.targets[:3], 5.0]), "RunError: rank 1 passed other identity or", ""),
        (
            Broken(GOOD.batch, GOOD.targets),
            "RunError: rank 1 cannot use",
            "UsageError: the batch cannot be read: OSErr",
        ),
        (replace(GOOD, batch=[]), "RunError: rank 1 cannot use", "UsageError: the batch is empty"),
        (full((65,)), "RunError: rank 1 cannot use", "UsageError: sequence 0 has 65 tokens and the model's table"),
        (replace(GOOD, targets=[1.0]), "RunError: rank 1", "UsageError: the source has 4 lengths and 1 targets"),
    ],
)
def test_ranks_that_cannot_agree_are_told(other: Kept, first: str, second: str) -> None:
    answers = [": ".join(one) for one in run(partial(told, other=other), 2, timeout=60)]
    assert answers[0].startswith(first) and answers[1].startswith(second or first)


def test_what_a_source_gives_is_checked() -> None:
    plain = Kept([[1, 2, 3], [4, 5]])
    assert lazy.supervised(plain) == 3.0 and lazy.is_source(plain) and not lazy.is_source([[1]])
    masked = replace(full((5,)), targets=None)
    with pytest.raises(UsageError, match="and its source says 4: a source that gives labels or weights"):
        lazy.portion(masked, 0, [(0, 5)])
    with pytest.raises(UsageError, match=r"token 300 at 0 of sequence 0\[1:3\]: the token table has 100 rows"):
        lazy.portion(Kept([[1, 300, 2]]), 0, [(1, 2)], LIMITS)
    short = Kept([[1, 2, 3]])
    short.read = lambda sequence, start, stop: [1]  # type: ignore[method-assign]
    with pytest.raises(UsageError, match="tokens 0 to 3 of sequence 0 were asked for, and 1 were read"):
        lazy.portion(short, 0, [(0, 2)])
