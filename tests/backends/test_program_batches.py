"""Batches: every usual form means the same, the loss is the model's whoever computes it, and a bad one is one error."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fourfold.backends.communication.processes import run
from fourfold.hardware.errors import FourfoldError

GOOD = [[5, 6, 7], [8, 9]]


class Raising:
    """A batch whose reading fails, as a data loader's may."""

    def __iter__(self) -> Any:
        raise OSError("the disk is gone")


BAD: dict[str, tuple[Any, str]] = {
    "empty": ([], "the batch is empty"),
    "empty-sequence": ([[5], []], "sequence 1 has shape (0,): tokens must be one row of at least one token"),
    "two-rows": ([torch.zeros(2, 3, dtype=torch.long)], "sequence 0 has shape (2, 3)"),
    "no-batch": (7, "a batch is a list of sequences, not a int"),
    "a-dict": ({"tokens": [1]}, "a batch is a list of sequences, not a dict"),
    "words": ([["a", "b"]], "the tokens of sequence 0 are no row of numbers"),
    "ragged-row": ([[[1, 2], [3]]], "the tokens of sequence 0 are no row of numbers"),
    "fractions": ([[5, 6], [0.5, 1.5]], "the tokens of sequence 1 are torch.float32: they must be whole numbers"),
    "wrong-key": ([{"token": [1]}], "sequence 0 has the keys token"),
    "four-fields": ([([1], [1], [1], [1])], "sequence 0 is a tuple of 4"),
    "token-too-large": ([[5], [6, 58]], "token 58 at 1 of sequence 1: the token table has 58 rows"),
    "token-negative": ([[5, -3]], "token -3 at 1 of sequence 0"),
    "label-too-large": ([([5, 6], [5, 99])], "label 99 at 1 of sequence 0: the head"),
    "label-negative": ([([5, 6], [5, -1])], "label -1 at 1 of sequence 0"),
    "labels-short": ([([5, 6], [5])], "sequence 0 has 2 tokens and labels of shape (1,)"),
    "weights-long": ([([5, 6], None, [1.0] * 3)], "sequence 0 has 2 tokens and weights of shape (3,)"),
    "weight-negative": ([([5, 6], None, [1.0, -1.0])], "weight -1.0 in sequence 0"),
    "weight-nan": ([([5, 6], None, [1.0, float("nan")])], "weight nan in sequence 0"),
    "beyond-capacity": ([[5], [6] * 65], "sequence 1 has 65 tokens, and a micro-step holds 64"),
    "reading-fails": (Raising(), "the batch cannot be read: OSError: the disk is gone"),
}
OTHER: dict[str, tuple[Any, str]] = {
    "other-lengths": ([[5, 6], [8, 9]], "rank 1 passed other lengths to step() than rank 0"),
    "more-sequences": ([*GOOD, [4]], "rank 1 passed other lengths to step() than rank 0"),
    "other-tokens": ([[5, 6, 7], [8, 4]], "rank 1 passed other tokens, labels or weights"),
    "other-order": ([[5, 6, 7], [9, 8]], "rank 1 passed other tokens, labels or weights"),
    "other-labels": ([([5, 6, 7], [5, -100, 7]), [8, 9]], "rank 1 passed other tokens, labels or weights"),
    "other-weights": ([([5, 6, 7], None, [1, 2, 1]), [8, 9]], "rank 1 passed other tokens, labels or weights"),
}
"""What rank 1 passes while rank 0 passes GOOD."""


def error_of(step: Callable[[Any], float], batch: Any) -> tuple[str, str]:
    try:
        step(batch)
    except FourfoldError as error:
        return type(error).__name__, str(error)
    return "none", ""


@pytest.fixture(scope="module")
def told(tiny: Any) -> dict[str, tuple[tuple[str, str], ...]]:
    """For each bad batch, what each of two ranks was told; all in one program, which goes on between them."""
    case = tiny.case(tiny.llama, dp=2)

    def work(rank: int) -> dict[str, tuple[str, str]]:
        program = case.program()
        program.init(seed=1)
        found = {}
        for name, (batch, _) in BAD.items():
            found[f"all {name}"] = error_of(program.step, batch)
            found[f"one {name}"] = error_of(program.step, batch if rank == 1 else GOOD)
            found[f"evaluated {name}"] = error_of(program.evaluate, batch)
        for name, (batch, _) in OTHER.items():
            found[name] = error_of(program.step, batch if rank == 1 else GOOD)
        found["good"] = error_of(program.step, GOOD)
        return found

    ranks = run(work, 2, timeout=120)
    return {name: tuple(rank[name] for rank in ranks) for name in ranks[0]}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_batch_is_one_named_error_on_every_rank(name: str, told: dict[str, Any]) -> None:
    words = BAD[name][1]
    for kind in ("all", "evaluated"):
        assert [(kind, words in text) for kind, text in told[f"{kind} {name}"]] == [("UsageError", True)] * 2
    if name == "beyond-capacity":
        return
    (zero, said), (one, text) = told[f"one {name}"]
    assert (zero, one) == ("RunError", "UsageError") and words in text
    assert said == f"rank 1 cannot use the batch it passed to step(): {text}"


@pytest.mark.parametrize("name", OTHER)
def test_ranks_that_pass_other_batches_are_told(name: str, told: dict[str, Any]) -> None:
    assert [(kind, OTHER[name][1] in text) for kind, text in told[name]] == [("RunError", True)] * 2


def test_a_program_goes_on_after_a_bad_batch(told: dict[str, Any]) -> None:
    assert told["good"] == (("none", ""), ("none", ""))


def test_a_sequence_longer_than_the_table_of_positions(tiny: Any) -> None:
    case = tiny.case(tiny.gpt)

    def work(rank: int) -> tuple[str, str]:
        long = replace(case, plan=replace(case.plan, capacity=100))
        program = long.program()
        program.init(0)
        return error_of(program.step, [[1] * 65])

    assert run(work, 1) == (("UsageError", "sequence 0 has 65 tokens and the model's table of positions 64: cut it"),)


def plain_loss(model: torch.nn.Module, batch: list[dict[str, Any]]) -> float:
    total = weight = 0.0
    for item in batch:
        logits = model(torch.tensor([item["tokens"]]))[0]
        labels = torch.tensor(item["labels"])
        weights = torch.tensor(item["weights"]).double() * (labels != -100)
        each = F.cross_entropy(logits[:-1], labels[1:], reduction="none", ignore_index=-100)
        total += float((each * weights[1:]).sum())
        weight += float(weights[1:].sum())
    return total / weight


def full(step: int) -> list[dict[str, Any]]:
    """Documents with labels and weights, one of them masked, one of a single token."""
    source = random.Random(step)
    batch = []
    for length in (13, 1, 9, 16, 5, 2):
        tokens = [source.randrange(58) for _ in range(length)]
        labels = [t if source.random() < 0.8 and length != 5 else -100 for t in tokens]
        batch.append(
            {"tokens": tokens, "labels": labels, "weights": [source.choice([0.0, 0.5, 1.0, 2.0]) for _ in tokens]}
        )
    return batch


@pytest.mark.parametrize(("dp", "tp", "zero", "capacity"), [(1, 1, 0, 64), (2, 1, 3, 16), (3, 1, 1, 17), (1, 2, 2, 64)])
def test_the_loss_knows_neither_order_nor_form_nor_layout(
    tiny: Any, dp: int, tp: int, zero: int, capacity: int
) -> None:
    case = tiny.case(tiny.llama, dp=dp, tp=tp, zero=zero)
    case = replace(case, plan=replace(case.plan, capacity=capacity))
    want = plain_loss(tiny.llama().double(), full(1))

    def work(rank: int) -> dict[str, float]:
        program = case.program()
        program.copy_from(tiny.llama().double())
        batch = full(1)
        turned = batch[::-1]
        mixed = random.Random(5).sample(batch, len(batch))
        tensors = [{k: torch.tensor(v) for k, v in item.items()} for item in batch]
        return {
            "lists": program.step(batch),
            "evaluated": program.evaluate(batch),
            "turned": program.step(turned),
            "mixed": program.step(mixed),
            "tensors": program.step(tensors),
            "tuples": program.step(tuple((i["tokens"], i["labels"], i["weights"]) for i in batch)),
            "arrays": program.step([{k: np.array(v) for k, v in i.items()} for i in batch]),
            "generator": program.step(item for item in batch),
        }

    for found in run(work, dp * tp, timeout=120):
        for form, loss in found.items():
            assert loss == pytest.approx(want, rel=1e-12), form


def test_tokens_alone_are_their_own_labels(tiny: Any) -> None:
    case = tiny.case(tiny.llama)
    rows = [[5, 6, 7, 8], [9, 10, 11, 12]]
    model = tiny.llama().double()
    want = plain_loss(model, [{"tokens": r, "labels": r, "weights": [1.0] * 4} for r in rows])

    def work(rank: int) -> list[float]:
        program = case.program()
        program.copy_from(tiny.llama().double())
        forms = (rows, torch.tensor(rows), [tuple(r) for r in rows], [torch.tensor(r, dtype=torch.int32) for r in rows])
        return [program.step(form) for form in (*forms, [(r,) for r in rows], [{"tokens": r} for r in rows])]

    assert run(work, 1)[0] == pytest.approx([want] * 6, rel=1e-12)


def test_a_batch_without_a_target_costs_nothing(tiny: Any) -> None:
    case = tiny.case(tiny.llama, dp=2)

    def work(rank: int) -> tuple[float, float]:
        program = case.program()
        program.init(seed=1)
        loss = program.step([([5, 6, 7], [-100] * 3), [8]])
        return loss, program.clip_grad_norm_(1.0)

    assert run(work, 2) == ((0.0, 0.0),) * 2
