"""Two gloo ranks place batches: rank 0 decides, all hold the same placement or the same error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import online_policies as policies
import pytest

from fourfold.backends.communication.aside import Aside
from fourfold.backends.communication.processes import run
from fourfold.compiler.online.choosing import Chooser, Online
from fourfold.compiler.online.log import as_text
from fourfold.compiler.online.paces import Paces
from fourfold.compiler.online.placer import Placer
from fourfold.hardware.errors import FourfoldError
from fourfold.ir.batch import BatchPlan, Piece
from fourfold.passes.batch import POLICIES
from fourfold.passes.batch.timing.orders import schedule_of

BATCHES = ((900, 400, 300, 200, 50), (5, 6), (1500, 20), (7,))


def placer(rank: int, online: Online, zero: int = 1) -> Placer:
    """Terms are for rank 0 alone."""

    def terms() -> Any:
        assert rank == 0, "only rank 0 decides"
        return policies.terms(zero=zero)

    return Placer(Chooser(online, terms), partial(schedule_of, stages=1, zero=zero, kind="1f1b"))


def placed(rank: int, online: Online) -> tuple[list[str], dict[str, int]]:
    one = placer(rank, online)
    found = [as_text(one.place(lengths)) for lengths in BATCHES]
    return found, dict(one.counts)


def test_all_ranks_hold_what_rank_0_decided() -> None:
    want = [as_text(POLICIES["bytescale"](lengths, policies.terms())) for lengths in BATCHES]
    first, second = run(partial(placed, online=Online("bytescale")), 2, timeout=60)
    assert first == second
    assert first[0] == want
    assert first[1]["unhinted"] == len(BATCHES) == sum(first[1].values())


def hinted(rank: int, path: Path) -> tuple[list[str], dict[str, int]]:
    one = placer(rank, Online(policy=partial(policies.released, path=path)))
    one.ahead(BATCHES[0])
    one.ahead(BATCHES[1])
    found = [one.place(BATCHES[0])]
    if rank == 0:
        path.touch()
        for lengths in BATCHES[:2]:
            one.chooser._known[lengths].result(60)
    found += [one.place(BATCHES[0]), one.place(BATCHES[1])]
    one.close()
    return [batch.policy for batch in found], dict(one.counts)


def test_hints_and_lateness_are_counted_alike_on_every_rank(tmp_path: Path) -> None:
    # Ranks that are forked daemons may start no process of multiprocessing's; these do not need to.
    first, second = run(partial(hinted, path=tmp_path / "go"), 2, timeout=60)
    assert first == second
    assert first[0] == ["bytescale", "released", "released"]
    assert {name: many for name, many in first[1].items() if many} == {"late": 1, "ahead": 2}


def told(rank: int, online: Online, lengths: Sequence[int]) -> tuple[str, str]:
    one = placer(rank, online)
    try:
        one.place(lengths)
    except FourfoldError as error:
        assert one.placed == 0
        one.chooser.policy = POLICIES["pack"]
        assert one.place((5, 6)).policy == "pack", "and goes on"
        return type(error).__name__, str(error)
    return "none", ""


@pytest.mark.parametrize(
    ("online", "lengths", "kind", "says"),
    [
        (Online("bytescale"), (2045, 7), "InfeasibleError", "bytescale cannot place sequence 0 of 2,045 tokens"),
        (Online(policy=policies.failing), (5,), "RunError", "step 0 cannot be placed: ValueError: one too many"),
        (Online(policy=policies.losing), (5,), "RunError", "does not fit this plan: sequence 0 of 5 tokens"),
    ],
)
def test_what_cannot_be_placed_is_one_error_on_all_ranks(
    online: Online, lengths: tuple[int, ...], kind: str, says: str
) -> None:
    first, second = run(partial(told, online=online, lengths=lengths), 2, timeout=60)
    assert first == second
    assert first[0] == kind and says in first[1]


def replayed(rank: int, path: Path) -> tuple[list[str], list[str]]:
    used, _ = placed(rank, Online(policy="bytescale", log=path))
    again, _ = placed(rank, Online(replay=path))
    return used, again


def test_a_run_is_replayed(tmp_path: Path) -> None:
    (used, again), (other, _) = run(partial(replayed, path=tmp_path / "log"), 2, timeout=60)
    assert used == again == other


def learnt(rank: int) -> tuple[float, ...] | None:
    one = placer(rank, Online(policy="pack"))
    for _ in range(60):
        one.place((900, 800))
        one.learn(rank, 0.5 * (1.3 if rank == 1 else 1.0) * (rank + 1), 1000 * (rank + 1))
    return one.chooser.paces.values if rank == 0 else None


def test_ranks_learn_which_is_slow() -> None:
    paces, _ = run(learnt, 2, timeout=60)
    assert paces == pytest.approx((1.0 / 1.15, 1.3 / 1.15), rel=1e-2)


def test_paces_are_a_moving_average_against_the_mean() -> None:
    found = Paces.even(3, alpha=0.25).after((2.0, 4.0, 0.0), (1.0, 1.0, 0.0))
    assert found.values == pytest.approx((1 + 0.25 * (2 / 3 - 1), 1 + 0.25 * (4 / 3 - 1), 1.0))
    assert found.after((0.0,) * 3, (1.0,) * 3) is found
    even = Paces.even(4)
    for _ in range(5):
        even = even.after((3.0, 6.0, 9.0, 3.0), (1.0, 2.0, 3.0, 1.0))
    assert even.values == pytest.approx((1.0,) * 4), "what all miss the prediction by is nobody's pace"


def talked(rank: int) -> tuple[bytes, bytes, int]:
    aside = Aside.here()
    return (
        aside.told(b"\x00\xff" * 1000 if rank == 0 else None),
        aside.told(b"" if rank == 0 else None),
        aside.rank,
    )


def test_bytes_are_told() -> None:
    assert run(talked, 2) == tuple((b"\x00\xff" * 1000, b"", rank) for rank in range(2))


def test_schedules_count_the_micro_steps_of_a_rank() -> None:
    pieces = tuple(Piece(i, 0, 9, step, (rank,)) for i, (step, rank) in enumerate(((0, 0), (2, 0), (1, 1))))
    batch = BatchPlan("by hand", (9, 9, 9), 3, 1024, pieces)
    counts = [placer(0, Online()).schedule(batch, rank).micro_steps for rank in range(3)]
    in_step = [placer(0, Online(), zero=3).schedule(batch, rank).micro_steps for rank in range(3)]
    assert (counts, in_step) == ([2, 1, 1], [3, 3, 3])
    cut = replace(batch, lengths=(9, 9, 10), pieces=(*pieces, Piece(2, 9, 10, 3, (1,))))
    assert str(placer(0, Online()).schedule(cut, 1)) == "0N0 0F1 0B1 0F0 0B0"
