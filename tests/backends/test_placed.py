"""Whatever a batch plan says, loss and every gradient are those of the plain module on the same batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fourfold.backends.communication.processes import run
from fourfold.backends.program import Options, Program
from fourfold.ir.batch import BatchPlan, Move, Piece
from fourfold.ir.batch_rules import Bounds, complaints
from fourfold.ir.plan import Sharing
from fourfold.ir.schedule import Schedule, in_turn

LENGTHS = (13, 1, 9, 16, 5)


def batch() -> list[list[int]]:
    random = torch.Generator().manual_seed(3)
    return [torch.randint(0, 58, (n,), generator=random).tolist() for n in LENGTHS]


@dataclass(frozen=True)
class Fixed:
    """The same placement for every batch, turns in order; or, of one rank's turns, in the order of a text."""

    plan: BatchPlan
    order: str = ""

    def ahead(self, lengths: Sequence[int]) -> None:
        raise AssertionError("nobody hints")

    def learn(self, rank: int, seconds: float, tokens: int) -> None:
        assert seconds >= 0.0

    def place(self, lengths: Sequence[int], step: int | None = None) -> BatchPlan:
        assert lengths == self.plan.lengths
        return self.plan

    def schedule(self, batch: BatchPlan, rank: int) -> Schedule:
        if self.order:
            return Schedule.parse(self.order)
        return in_turn(max(1, len(list(batch.of(rank)))))


@dataclass(frozen=True)
class InStep(Fixed):
    """All ranks go through all micro-steps."""

    def schedule(self, batch: BatchPlan, rank: int) -> Schedule:
        return in_turn(batch.micro_steps)


def placed(ranks: int, *pieces: tuple[Any, ...], **rest: Any) -> BatchPlan:
    """(sequence, micro-step, ranks, method, start, stop) each, the last two when it is a chunk."""
    made = tuple(Piece(i, *(span or (0, LENGTHS[i])), step, on, how) for i, step, on, how, *span in pieces)
    found = BatchPlan("by hand", LENGTHS, ranks, 64, made, **rest)
    assert not (wrong := complaints(found, Bounds(ranks, 64, 0, 4))), wrong
    return found


ALONE = ((2, 0, (0,), "whole"), (1, 0, (1,), "whole"), (4, 0, (1,), "whole"))
PLACEMENTS = {
    "packed, unequal counts": placed(
        2,
        (0, 0, (0,), "whole"),
        (1, 1, (0,), "whole"),
        (2, 2, (0,), "whole"),
        (3, 0, (1,), "whole"),
        (4, 0, (0,), "whole"),
    ),
    "a ring beside local ones": placed(2, (3, 0, (0, 1), "ring"), (0, 0, (0, 1), "ring"), *ALONE),
    "two methods at once": placed(2, (3, 0, (0, 1), "ulysses"), (0, 0, (0, 1), "gather_kv"), *ALONE),
    "rings that overlap": placed(
        4,
        (3, 0, (0, 1, 2), "ring"),
        (0, 0, (1, 3), "gather_kv"),
        (2, 1, (0, 2), "ring"),
        (1, 1, (3,), "whole"),
        (4, 3, (3,), "whole"),
    ),
    "heads exchanged by twos, a ring of two": placed(
        4, (3, 0, (0, 1, 2, 3), "usp2"), (0, 0, (0, 1, 2, 3), "usp2"), (1, 0, (2,), "whole"), *ALONE[::2]
    ),
    "a rank without work": placed(3, *((i, i // 2, (i % 2,), "whole") for i in range(5))),
    "moved tokens": placed(
        3,
        (3, 0, (0,), "whole"),
        (0, 0, (0, 1), "ring"),
        (2, 0, (1,), "whole"),
        (1, 0, (2,), "whole"),
        (4, 1, (2,), "whole"),
        moves=(Move(0, 0, 2, 7), Move(0, 1, 2, 3)),
    ),
}
CHAIN = tuple((3, i, (0,), "whole", a, b) for i, (a, b) in enumerate(((0, 6), (6, 11), (11, 16))))
SHARED = tuple((3, i, (0, 1), "ring", a, b) for i, (a, b) in enumerate(((0, 6), (6, 11), (11, 16))))
OTHERS = ((0, 0, (1,), "whole"), (1, 0, (1,), "whole"), (2, 1, (1,), "whole"), (4, 2, (1,), "whole"))
CHUNKED = {
    "chunks, all kept": (placed(2, *CHAIN, *OTHERS, retained=3), "0F0 0F1 0F2 0B2 0B1 0B0"),
    "chunks, one kept": (placed(2, *CHAIN, *OTHERS), "0N0 0N1 0F2 0B2 0F1 0B1 0F0 0B0"),
    "shared chunks, two kept": (placed(2, *SHARED, *OTHERS, retained=2), "0N0 0F1 0F2 0B2 0B1 0F0 0B0"),
}


def wanted(make: Callable[[], nn.Module]) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of the plain module, document by document."""
    model = make().double()
    total = torch.zeros((), dtype=torch.float64)
    for row in batch():
        tokens = torch.tensor(row)
        logits = model(tokens[None])[0]
        total = total + F.cross_entropy(logits[:-1], tokens[1:], reduction="sum") if len(row) > 1 else total
    loss = total / sum(n - 1 for n in LENGTHS)
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach()), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def agree(case: Any, placement: Fixed, make: Callable[[], nn.Module], *, near: float = 1e-10) -> None:
    loss, gradients = wanted(make)
    case = replace(case, plan=replace(case.plan, sharing=Sharing(travel="float64")))

    def work(rank: int) -> tuple[float, float, dict[str, Any]]:
        program = Program(make(), case.plan, case.plan.graph, Options(), placement=placement)
        program.copy_from(make().double())
        before = program.evaluate(batch())
        found = program.step(batch())
        for _, p in program.named_parameters():
            if p.grad is not None:
                p.data.copy_(p.grad)
        return before, found, {n: t.tolist() for n, t in program.full_state_dict(everywhere=True).items()}

    for before, found, held in run(work, case.plan.mesh.ranks):
        assert found == pytest.approx(loss, abs=near) and before == pytest.approx(loss, abs=near)
        for name, gradient in gradients.items():
            torch.testing.assert_close(torch.tensor(held[name], dtype=torch.float64), gradient, rtol=near, atol=near)


@pytest.mark.parametrize("zero", (0, 1, 3))
@pytest.mark.parametrize("name", PLACEMENTS)
def test_it_equals_the_plain_module(name: str, zero: int, tiny: Any) -> None:
    plan = PLACEMENTS[name]
    kind = InStep if zero > 1 else Fixed
    agree(tiny.case(tiny.llama, dp=plan.ranks, zero=zero), kind(plan), tiny.llama)


@pytest.mark.parametrize("recompute", ("none", "regions", "full"))
@pytest.mark.parametrize("name", CHUNKED)
def test_chunks_equal_the_plain_module(name: str, recompute: str, tiny: Any) -> None:
    plan, order = CHUNKED[name]
    case = tiny.case(tiny.llama, dp=2, zero=1)
    case = replace(case, plan=replace(case.plan, recompute=(recompute,) * len(case.plan.graph.calls)))
    agree(case, Fixed(plan, order), tiny.llama)


def test_moved_tokens_are_replayed(tiny: Any) -> None:
    case = tiny.case(tiny.llama, dp=3, zero=1)
    case = replace(case, plan=replace(case.plan, recompute=("regions",) * len(case.plan.graph.calls)))
    agree(case, Fixed(PLACEMENTS["moved tokens"]), tiny.llama)


def test_tensor_and_placed(tiny: Any) -> None:
    """Each place on the tensor axis has its own part of the team's messages."""
    agree(tiny.case(tiny.llama, dp=2, tp=2, zero=1), Fixed(PLACEMENTS["a ring beside local ones"]), tiny.llama)
