"""A window over a stream: every sequence once, the short ones in their turn, the long ones late by bounds."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice, pairwise, takewhile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold.compiler.data.window import Delay, Price, Window
from fourfold.hardware.errors import UsageError

LENGTHS = st.lists(st.one_of(st.integers(1, 100), st.integers(80, 700)), max_size=120)
DELAYS = st.builds(
    Delay,
    st.sampled_from(((), (100,), (100, 300), (5,))),
    together=st.integers(1, 4),
    patience=st.integers(1, 6),
    most=st.integers(1, 12),
)


def apart(lengths: tuple[int, ...]) -> float:
    """Seconds on four ranks that share no sequence, if all goes well."""
    return max(max(lengths), sum(lengths) / 4)


PRICES = st.sampled_from((None, apart))
TOKENS = st.sampled_from((1, 250, 400, 1500))


def in_turn(lengths: list[int], tokens: int) -> list[tuple[int, ...]]:
    """The obvious: the next ones up to so many tokens."""
    found: list[list[int]] = []
    room = 0
    for i, length in enumerate(lengths):
        if not found or length > room:
            found.append([])
            room = tokens
        found[-1].append(i)
        room -= length
    return [tuple(batch) for batch in found]


@given(LENGTHS, TOKENS)
def test_nothing_waits_unless_it_is_asked_for(lengths: list[int], tokens: int) -> None:
    assert list(Window(lengths, tokens=tokens)) == in_turn(lengths, tokens)


@settings(max_examples=300)
@given(LENGTHS, TOKENS, DELAYS, PRICES)
def test_every_sequence_comes_once_and_batches_hold_no_more(
    lengths: list[int], tokens: int, delay: Delay, price: Price | None
) -> None:
    batches = list(Window(lengths, tokens=tokens, delay=delay, price=price))
    assert Counter(i for batch in batches for i in batch) == Counter(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or sum(lengths[i] for i in batch) <= tokens


@settings(max_examples=300)
@given(LENGTHS, TOKENS, DELAYS, PRICES)
def test_order_is_bounded(lengths: list[int], tokens: int, delay: Delay, price: Price | None) -> None:
    window, given_out, taken_in = (
        Window(lengths, tokens=tokens, delay=delay, price=price),
        list[int](),
        dict[int, int](),
    )
    for number, batch in enumerate(window):
        given_out += batch
        taken_in |= dict.fromkeys(range(len(taken_in), window.place.taken), number)
        waiting = [one.sequence for one in window.place.waiting]
        # The stream was read so far, and all of it is given out but a few long ones.
        assert sorted([*given_out, *waiting]) == list(range(window.place.taken))
        assert len(waiting) <= delay.most and all(delay.queue(lengths[i]) for i in waiting)
        over = [i for i in waiting if number - taken_in[i] >= delay.patience]
        if over:
            # Its patience is over and it still waits: those that waited longer came first and left no room.
            before = list(takewhile(lambda i, first=over[0]: i < first, batch))
            assert before and sum(lengths[i] for i in before) + lengths[over[0]] > tokens
    for queue in range(len(delay.thresholds) + 1):
        of_it = [i for i in given_out if delay.queue(lengths[i]) == queue]
        assert of_it == sorted(of_it), "each queue, and what never waits, keeps the stream's order"


@given(LENGTHS, TOKENS, DELAYS, PRICES, st.integers(0, 20))
def test_a_window_goes_on_where_it_was_saved(
    lengths: list[int], tokens: int, delay: Delay, price: Price | None, after: int
) -> None:
    window, again = (Window(lengths, tokens=tokens, delay=delay, price=price) for _ in range(2))
    whole = list(Window(lengths, tokens=tokens, delay=delay, price=price))
    begun = list(islice(window, min(after, len(whole))))
    again.load_state_dict(json.loads(json.dumps(window.state_dict())))
    assert begun + list(again) == whole


def test_long_ones_share_a_batch() -> None:
    lengths = [500, *[100] * 7] * 4

    def long(delay: Delay) -> list[int]:
        return [sum(lengths[i] > 200 for i in batch) for batch in Window(lengths, tokens=1200, delay=delay)]

    assert long(Delay()) == [1, 1, 1, 1]
    assert long(Delay((200,), together=2)) == [0, 2, 0, 2]


def test_what_is_let_out_is_worth_it() -> None:
    lengths = [500, *[100] * 7] * 8
    delay = Delay((200,), patience=5)
    batches = list(Window(lengths, tokens=2000, delay=delay, price=apart))
    long = [[lengths[i] for i in batch].count(500) for batch in batches]
    # Four ranks take four of 500 in the time of one: fewer would leave them idle.
    assert long == [0, 0, 0, 4, 4]
    assert sum(apart(tuple(lengths[i] for i in batch)) for batch in batches) == sum(lengths) / 4


def test_other_lengths_are_refused() -> None:
    state = Window([1, 2, 3], tokens=4).state_dict()
    for other in (
        Window([1, 2, 4], tokens=4),
        Window([1, 2, 3], tokens=5),
        Window([1, 2, 3], tokens=4, delay=Delay((9,))),
    ):
        with pytest.raises(UsageError, match="saved over other lengths"):
            other.load_state_dict(state)
    for thresholds in ((3, 3), (4, 2)):
        with pytest.raises(UsageError, match="thresholds ascend"):
            Delay(thresholds)


def test_batches_come_from_numbers_alone() -> None:
    lengths = [7 * i % 300 + 1 for i in range(200)]
    one, other = (list(Window(lengths, tokens=900, delay=Delay((150,)))) for _ in range(2))
    assert one == other and all(a != b for a, b in pairwise(one))
