"""State-aware 1F1B: published bubbles, the rules of chunks, the memory it says it takes; and orders that beat it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise, permutations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold.ir.schedule import Action, Schedule, ScheduleError
from fourfold.ir.schedule_checks import check
from fourfold.passes.schedule.one_f_one_b import one_f_one_b
from fourfold.passes.schedule.ordering import ordered
from fourfold.passes.schedule.sends import with_sends
from fourfold.passes.schedule.state_aware import dropped, state_aware
from fourfold.passes.schedule.timing import in_flight, timed

HAND = """
0F0 0F1 0F2 0F3 0B1 0B3 0B0 0B2
1F0 1F1 1F2 1F3 1B1 1B3 1B0 1B2
2F0 2F1 2F2 2B1 2F3 2B3 2B0 2B2
3F0 3F1 3B1 3F2 3F3 3B3 3B0 3B2
"""
"""ChunkFlow's figure: A of four units is chunks 0 and 1, B is 2, C is 3; backward A2, C, A1, B, one more warm-up."""
CHAINS = ((0, 1), (2,), (3,))


def units(*lengths: float) -> Callable[[int, str, int], float]:
    """Durations by micro-step: forward as long as it is, backward twice as long."""
    return lambda stage, kind, step: lengths[step] * (2.0 if kind == "B" else 1.0)


@pytest.mark.parametrize(
    ("schedule", "lengths", "takes", "bubble"),
    [
        pytest.param(one_f_one_b(4, 4), (2, 2, 2, 2), 42, 0.428, id="equal lengths"),
        pytest.param(one_f_one_b(4, 4), (4, 1, 2, 1), 56, 0.5714, id="whole sequences"),
        pytest.param(one_f_one_b(4, 4), (4, 2, 1, 1), 56, 0.5714, id="whole sequences, another order"),
        pytest.param(one_f_one_b(4, 2), (4, 4), 60, 0.60, id="chunks of 4"),
        pytest.param(Schedule.parse(HAND), (2, 2, 2, 2), 46, 0.478, id="chunks of 2, both of A kept"),
    ],
)
def test_published_bubbles(schedule: Schedule, lengths: Sequence[float], takes: float, bubble: float) -> None:
    """Source: ChunkFlow, its figures of lengths 1, 1, 2 and 4 on four stages; what they print is cut, not rounded."""
    found = timed(schedule, units(*lengths))
    assert found.makespan == takes
    assert bubble <= found.bubble < bubble + 1e-3


def test_chunks_in_order_beat_the_order_made_by_hand() -> None:
    """Both chunks of A backward at once is as good as equal lengths; with one of them dropped still better."""
    check(Schedule.parse(HAND), chains=CHAINS)
    assert timed(state_aware(4, CHAINS, 2), units(2, 2, 2, 2)).makespan == 42
    assert timed(state_aware(4, CHAINS, 1), units(2, 2, 2, 2)).makespan == 44


@pytest.mark.parametrize(
    ("chains", "lengths", "least"), [(CHAINS, (2, 2, 2, 2), 42), (((0,), (1,), (2,), (3,)), (4, 1, 2, 1), 53)]
)
def test_no_order_is_faster(chains: Sequence[Sequence[int]], lengths: Sequence[float], least: float) -> None:
    """Proven: of the chunks, 46 by hand; of the whole sequences, published with 56."""
    found = ordered(4, chains, units(*lengths), retained=2)
    assert found.seconds == least
    assert found.bound == pytest.approx(least, abs=1e-3)
    check(found.schedule, chains=chains)


def test_one_stage() -> None:
    """Forward in order, the last kept; backward in reverse, the others forward again."""
    assert str(state_aware(1, ((0, 1, 2, 3), (4,), (5, 6)), 2)) == (
        "0N0 0N1 0F2 0F3 0B3 0B2 0F1 0B1 0F0 0B0 0F4 0B4 0F5 0F6 0B6 0B5"
    )


def test_whole_micro_steps_are_1f1b() -> None:
    for ranks, count in product(range(1, 7), range(1, 9)):
        assert state_aware(ranks, [[step] for step in range(count)], 3) == one_f_one_b(ranks, count)


def test_a_chain_before_whole_micro_steps_has_the_bubble_of_1f1b() -> None:
    """(p - 1) (F + B), whatever is dropped."""
    for ranks, kept, chunks, whole in product(range(1, 6), (1, 2, 4), range(1, 8), range(6)):
        chains = (tuple(range(chunks)), *((chunks + more,) for more in range(whole)))
        found = timed(state_aware(ranks, chains, kept), {(s, k): t for s in range(5) for k, t in (("F", 1), ("B", 2))})
        assert found.busy[0] == 3 * (chunks + whole) + max(0, chunks - kept)
        assert found.bubbles[0] == 3 * (ranks - 1), (ranks, kept, chunks, whole)


@st.composite
def chained(draw: st.DrawFn, most: int = 8) -> tuple[tuple[int, ...], ...]:
    """Some micro-steps, cut into chains at some of them."""
    count = draw(st.integers(1, most))
    cuts = sorted({0, count, *draw(st.lists(st.integers(0, count), max_size=4))})
    return tuple(tuple(range(a, b)) for a, b in pairwise(cuts))


@settings(deadline=None)
@given(st.integers(1, 5), chained(14), st.integers(1, 4), st.integers(0, 2))
def test_chunks_keep_their_rules(ranks: int, chains: tuple[tuple[int, ...], ...], retained: int, ahead: int) -> None:
    schedule = state_aware(ranks, chains, retained)
    check(schedule, chains=chains)
    check(with_sends(schedule, ahead=ahead), queue="rank", chains=chains)
    assert all(held <= retained + ranks - 1 - stage for stage, held in enumerate(in_flight(schedule)))
    again = sum(max(0, len(chain) - retained) for chain in chains)
    assert len(dropped(chains, retained)) == again
    assert all(sum(action.kind == "N" for action in line) == again for line in schedule.lines)


@pytest.mark.parametrize(("chains", "retained"), [(((0, 1), (1,)), 1), (((0, 2),), 1), (((0, 1),), 0), ((), 1)])
def test_what_is_no_chain_is_refused(chains: Sequence[Sequence[int]], retained: int) -> None:
    with pytest.raises(ScheduleError, match=r"each micro-step is in one chain|at least 1 rank and 1 micro-step"):
        state_aware(2, chains, retained)


@settings(max_examples=8, deadline=None)
@given(
    st.sampled_from([(((0, 1), (2,)), 1), (((0, 1), (2,)), 2), (((0,), (1,), (2,)), 1)]),
    st.lists(st.integers(1, 9), min_size=18, max_size=18),
)
def test_the_order_found_is_the_best_of_all(case: tuple[tuple[tuple[int, ...], ...], int], took: list[int]) -> None:
    """Against every order of two stages that passes `check` within the same memory."""
    chains, retained = case

    def lasts(stage: int, kind: str, step: int) -> float:
        return float(took[stage * 9 + step * 3 + "NFB".index(kind)])

    start = state_aware(2, chains, retained)
    orders = [_valid(start, stage, chains, in_flight(start)[stage]) for stage in range(2)]
    least = min(timed(Schedule.of(lines), lasts).makespan for lines in product(*orders) if _runs(Schedule.of(lines)))
    assert ordered(2, chains, lasts, retained=retained).seconds == least


def _valid(start: Schedule, stage: int, chains: Sequence[Sequence[int]], room: int) -> list[list[Action]]:
    """All orders of a stage's line that a pipeline of this stage alone could run."""
    found = []
    for line in permutations(start.lines[stage]):
        alone = Schedule.parse(" ".join(f"0{str(action)[1:]}" for action in line))
        try:
            check(alone, chains=chains)
        except ScheduleError:
            continue
        if in_flight(alone)[0] <= room:
            found.append(list(line))
    return found


def _runs(schedule: Schedule) -> bool:
    try:
        check(schedule)
    except ScheduleError:
        return False
    return True
