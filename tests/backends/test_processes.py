"""Processes: answers in rank order; every way to fail gives one error, in time, and leaves no process behind."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist

from fourfold.backends.communication.processes import run
from fourfold.hardware.errors import RunError, UsageError


def total(rank: int) -> tuple[int, int, float]:
    x = torch.tensor([float(rank)])
    dist.all_reduce(x)
    return rank, torch.get_num_threads(), float(x)


def test_answers_come_in_rank_order_from_one_group() -> None:
    assert run(total, 3) == ((0, 1, 3.0), (1, 1, 3.0), (2, 1, 3.0))


@pytest.mark.slow
def test_spawned_processes_answer_alike() -> None:
    assert run(total, 2, start="spawn") == ((0, 1, 1.0), (1, 1, 1.0))


def test_a_joined_parent_does_not_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    real = multiprocessing.get_context
    monkeypatch.setattr(multiprocessing, "get_context", lambda how: asked.append(how) or real("fork"))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    run(lambda rank: rank, 1)
    assert asked == ["spawn"]


def raises(rank: int) -> None:
    if rank == 1:
        print("what rank 1 saw last")
        raise ValueError("no such thing\nsecond line")
    dist.barrier()


def named(rank: int) -> None:
    if rank == 1:
        raise UsageError("the batch is empty")
    dist.barrier()


def dies(rank: int) -> None:
    if rank == 1:
        print("about to leave", file=sys.stderr)
        os._exit(7)
    dist.barrier()


def hangs(rank: int) -> None:
    if rank == 1:
        print("waiting for nothing")
        time.sleep(600)
    dist.barrier()


@pytest.mark.parametrize(
    ("work", "kind", "words", "timeout"),
    [
        (raises, RunError, ("rank 1 of 2 failed: ValueError: no such thing", "what rank 1 saw last"), 60.0),
        (named, UsageError, ("the batch is empty",), 60.0),
        (dies, RunError, ("rank 1 of 2 died (exit code 7)", "about to leave"), 60.0),
        (hangs, RunError, ("had not finished after 2 s",), 2.0),
    ],
    ids=["raises", "named", "dies", "hangs"],
)
def test_one_bad_rank_is_one_error(
    work: Callable[[int], Any], kind: type[Exception], words: tuple[str, ...], timeout: float
) -> None:
    begun = time.monotonic()
    with pytest.raises(kind) as found:
        run(work, 2, timeout=timeout)
    assert time.monotonic() - begun < 10
    assert all(word in str(found.value) for word in words), str(found.value)
    assert multiprocessing.active_children() == []
