"""A real plan, tokens in a file, a window, hints: what two ranks would run of each batch is the batch, once."""

from __future__ import annotations

from collections import Counter
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import online_policies as policies
import pytest
import torch

import fourfold as ff
from fourfold.backends.batch import lazy
from fourfold.backends.batch.batching import filled
from fourfold.backends.batch.placing import turns
from fourfold.backends.batch.sequences import Limits
from fourfold.backends.communication.processes import run
from fourfold.compiler.data.price import Predicted, predicted
from fourfold.compiler.models import tiny
from fourfold.compiler.online import Online, Placer
from fourfold.ir.plan import Plan
from fourfold.passes.batch import POLICIES
from fourfold.passes.batch.timing.timing import timed

LENGTHS = [40, 200, 30, 90, 60, 250, 20, 130, 10, 70, 240, 50]


def seen(rank: int, plan: Plan, folder: Path, window: list[tuple[int, ...]]) -> tuple[list[Any], dict[str, int]]:
    """For each batch: the micro-steps of the schedule, and the (sequence, position, token, target) of this rank."""
    file, placer, found = ff.TokenFile.open(folder), Placer.of(plan, Online("bytescale", deterministic=True)), []
    batches = [file.batch(numbers) for numbers in window]
    for batch, coming in pairwise([*batches, None]):
        assert batch is not None
        if coming is not None:
            placer.ahead(coming.lengths)
        lengths = lazy.agreed_lengths(batch, Limits(), placer.aside)
        placed = placer.place(lengths)
        parts = lazy.parts(batch, lazy.spans_of(turns(placed, rank, every=False)), Limits(), placer.aside)
        rows = []
        for team in (team for _, teams in placed.of(rank) for team in teams):
            docs: Any = [parts[piece.sequence] for piece in team.pieces]
            shard = team.shards()[team.ranks.index(rank)]
            packed = filled(docs, shard, bucket=1, device=torch.device("cpu"))
            which = [
                batch.sequences[team.pieces[run.document].sequence] for run in shard.runs for _ in range(run.count)
            ]
            columns = (packed.positions, packed.tokens[0], packed.targets)
            rows += list(zip(which, *(column.tolist() for column in columns), strict=False))
        found.append((placer.schedule(placed, rank).micro_steps, rows))
    placer.close()
    return found, dict(placer.counts)


@pytest.mark.slow
def test_two_ranks_run_every_token_of_a_stream_once(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = tiny("llama-8b")()
    work = ff.Workload.of(LENGTHS)
    pins = {"dp": 2, "zero": 1}
    plan = ff.plan(model, work, hardware="cpu-gloo-2", precision=ff.Precision.fp32, pins=pins, top=0).plan
    tokens = [[(7 * i + 3 * at) % 250 for at in range(length)] for i, length in enumerate(LENGTHS)]
    ff.TokenFile.write(tmp_path, tokens, dtype="uint8")
    delay = ff.Delay((190,), patience=2)
    window = list(ff.Window(LENGTHS, tokens=500, delay=delay, price=predicted(plan)))
    assert len(window) > 2
    first, second = run(partial(seen, plan=plan, folder=tmp_path, window=window), 2, timeout=120)
    assert first[1] == second[1] and sum(first[1].values()) == len(window)
    assert first[1]["unhinted"] == 1 and first[1]["late"] == first[1]["lost"] == 0
    every = Counter(row for answers in (first[0], second[0]) for _, rows in answers for row in rows)
    assert every == Counter(
        (i, at, token, (*tokens[i], -100)[at + 1]) for i in range(len(LENGTHS)) for at, token in enumerate(tokens[i])
    )
    assert all(steps >= 1 for answers in (first[0], second[0]) for steps, _ in answers)


def test_a_price_is_that_of_the_placement() -> None:
    known = policies.terms()
    price = Predicted(known, POLICIES["pack"])
    assert price((900, 5)) == timed(POLICIES["pack"]((900, 5), known), known).seconds
    assert price((1025,)) == float("inf")
