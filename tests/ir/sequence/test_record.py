"""What Record lists of a method: bytes equal closed forms, kernels see each visible pair once, steps are balanced."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold.ir.record import Pass, Ran, Recording, Sent, Waited, record
from fourfold.ir.sequence import METHODS
from fourfold.ir.sequence.method import Job
from fourfold.ir.sequence.rectangles import Softmax
from fourfold.ir.sequence.tokens import LAYOUTS, laid

FULL = Softmax(1.0, causal=False)
CAUSAL = Softmax(1.0, causal=True)
N = 4
TOKENS = 1024
HEADS, KV_HEADS, WIDTH = 32, 8, 128
BOTH: tuple[Pass, Pass] = ("forward", "backward")


def recorded(
    method: str, job: Job, kv_heads: int = KV_HEADS, *, dtype: torch.dtype = torch.bfloat16, takes_delta: bool = True
) -> list[Recording]:
    """Of every rank."""
    return [
        record(
            METHODS[method],
            job,
            rank,
            heads=HEADS,
            kv_heads=kv_heads,
            width=WIDTH,
            dtype=dtype,
            takes_delta=takes_delta,
        )
        for rank in range(len(job.shards))
    ]


def job(layout: str, softmax: Softmax, ulysses: int = 1, travel: torch.dtype | None = None) -> Job:
    """One document over 4 ranks of 1024 tokens."""
    return Job(laid(layout, (N * TOKENS,), N, ulysses), softmax, ulysses, travel)


# Letters: s = 1024 tokens a rank, X_q = s 32 128 = 4194304 and X_kv = s 8 128 = 1048576 elements, L = s 32 numbers of
# float32 (lse or delta), e = 2 bytes, n = 4, u ranks that exchange heads. Bytes that one rank sends.
FORMS = [
    # (n-1) 2 X_kv e | (n-1) 2 X_kv e + (n-1) 2 X_kv (4, or e where gradients travel in bfloat16)
    ("ring", 1, None, 12582912, 37748736),
    ("ring", 1, torch.bfloat16, 12582912, 25165824),
    # The same: gathered twice, gradients reduced and scattered.
    ("gather_kv", 1, None, 12582912, 37748736),
    ("gather_kv", 1, torch.bfloat16, 12582912, 25165824),
    # (n-1)/n (2 X_q + 2 X_kv) e, both ways
    ("ulysses", 4, None, 15728640, 15728640),
    # (u-1)/u (2 X_q + 2 X_kv) e + (n/u-1) 2 X_kv e | the same + (n/u-1) 2 X_kv (4 or e)
    ("usp", 2, None, 14680064, 23068672),
    ("usp", 2, torch.bfloat16, 14680064, 18874368),
    # (n-1) X_q e + (n-1) (X_q e + 4 L) | (n-1) (2 X_q e + 8 L) + (n-1) X_q (4 or e)
    ("token_ring", 1, None, 50724864, 101449728),
    ("token_ring", 1, torch.bfloat16, 50724864, 76283904),
    # As ring: keys round, values round | both again + (n-1)/n of the gradients of all tokens, 2 n X_kv (4 or e); the
    # all-reduce of the original sends these twice.
    ("rsa", 1, None, 12582912, 37748736),
    ("rsa", 1, torch.bfloat16, 12582912, 25165824),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("method", "ulysses", "travel", "forward", "backward"), FORMS)
def test_bytes_are_the_closed_forms(
    method: str, ulysses: int, travel: torch.dtype | None, forward: int, backward: int, layout: str
) -> None:
    for found in recorded(method, job(layout, FULL, ulysses, travel)):
        assert (found.sent_bytes("forward"), found.sent_bytes("backward")) == (forward, backward)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", ("ring", "gather_kv", "ulysses", "usp", "rsa"))
def test_where_keys_or_heads_travel_a_mask_saves_nothing(method: str, layout: str) -> None:
    ulysses = {"ulysses": 4, "usp": 2}.get(method, 1)
    full, causal = (recorded(method, job(layout, softmax, ulysses)) for softmax in (FULL, CAUSAL))
    assert [[x.sent_bytes(kind) for kind in BOTH] for x in full] == [
        [x.sent_bytes(kind) for kind in BOTH] for x in causal
    ]


def test_key_heads_that_two_ranks_read_travel_to_both() -> None:
    # X_kv = s 2 128 = 262144: (n-1)/n (2 X_q + 2 X_kv u/2) e, both ways
    for found in recorded("ulysses", job("contiguous", CAUSAL, 4), kv_heads=2):
        assert [found.sent_bytes(kind) for kind in BOTH] == [14155776, 14155776]


def test_queries_travel_only_where_they_are_seen() -> None:
    # Zigzag: queries of rank j go to j ranks whole and to 3 - j by half, so 6 + 6/2 = 9 of 12 times over all ranks:
    # 9 (X_q e + X_q e + 4 L) | 9 (2 X_q e + 8 L + 4 X_q)
    zigzag = recorded("token_ring", job("zigzag", CAUSAL))
    assert [sum(x.sent_bytes(kind) for x in zigzag) for kind in BOTH] == [152174592, 304349184]
    # Contiguous: queries of rank j go to the j ranks before: 6 times over all.
    contiguous = recorded("token_ring", job("contiguous", CAUSAL))
    assert [sum(x.sent_bytes(kind) for x in contiguous) for kind in BOTH] == [101449728, 202899456]
    # A window of 129: the first 128 queries of a rank see keys of the one before: 3 times 1/8 over all.
    window = recorded("token_ring", job("contiguous", Softmax(1.0, causal=True, window=129)))
    assert [sum(x.sent_bytes(kind) for x in window) for kind in BOTH] == [6340608, 12681216]


def test_a_kernel_that_asks_for_out_is_sent_out() -> None:
    # (n-1) (3 X_q e + 4 L) + (n-1) 4 X_q
    found = recorded("token_ring", job("zigzag", FULL), takes_delta=False)
    assert [x.sent_bytes("backward") for x in found] == [126222336] * N


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", [name for name in METHODS if name != "whole"])
def test_what_is_sent_is_awaited(method: str, layout: str) -> None:
    """Over all ranks; and nothing is waited for that did not start before."""
    ulysses = {"ulysses": 4, "usp": 2}.get(method, 1)
    shared = Job(laid(layout, (700, 3, 129, 64), N, ulysses), CAUSAL, ulysses)
    found = recorded(method, shared)
    for kind in BOTH:
        events = [event for one in found for event in one.of(kind)]
        awaited = sum(event.bytes for event in events if isinstance(event, Waited))
        assert awaited == sum(one.sent_bytes(kind) for one in found) > 0
    for one in found:
        waits = [event.number for kind in BOTH for event in one.of(kind) if isinstance(event, Waited)]
        assert len(set(waits)) == len(waits)


@pytest.mark.parametrize("method", ("ring", "gather_kv", "token_ring"))
def test_messages_leave_before_the_kernel_that_hides_them(method: str) -> None:
    """Every wait has a kernel call between it and its start, but for what the last call found."""
    for found in recorded(method, job("zigzag", CAUSAL)):
        started, hidden = {}, 0
        for at, event in enumerate(found.forward):
            if isinstance(event, Sent):
                started.setdefault(event.number, at)
            if isinstance(event, Waited):
                between = found.forward[started[event.number] : at]
                hidden += any(isinstance(x, Ran) for x in between)
        waits = sum(isinstance(x, Waited) for x in found.forward)
        assert hidden == waits - (method == "token_ring")


def visible(lengths: Iterable[int], softmax: Softmax) -> int:
    """Pairs of (query, key) over all documents, counted row by row."""
    pairs = 0
    for length in lengths:
        for i in range(length):
            first = 0 if softmax.window is None else max(0, i - softmax.window + 1)
            pairs += (i if softmax.causal else length - 1) - first + 1
    return pairs


RAGGED = st.lists(st.integers(1, 90), min_size=1, max_size=4).map(tuple)
SOFTMAXES = st.sampled_from((FULL, CAUSAL, Softmax(1.0, causal=True, window=7), Softmax(1.0, causal=False, window=3)))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("whole", "rsa")])
@given(lengths=RAGGED, softmax=SOFTMAXES, n=st.sampled_from((1, 2, 3, 4, 6, 8)))
@settings(max_examples=8, deadline=None)
def test_kernels_work_on_each_visible_pair_once(
    method: str, layout: str, lengths: tuple[int, ...], softmax: Softmax, n: int
) -> None:
    """Over all ranks and heads; rsa calls no kernel, and works on hidden pairs too."""
    ulysses = n if method == "ulysses" else 2 if method == "usp" and n % 2 == 0 else 1
    found = recorded(method, Job(laid(layout, lengths, n, ulysses), softmax, ulysses))
    for kind in BOTH:
        pairs = sum(call.pairs * call.heads for one in found for call in one.ran(kind))
        assert pairs == visible(lengths, softmax) * HEADS


@pytest.mark.parametrize("method", ("ring", "token_ring"))
@given(st.data(), st.sampled_from((2, 3, 4, 8)))
@settings(max_examples=10, deadline=None)
def test_every_step_of_zigzag_is_balanced(method: str, data: st.DataObject, n: int) -> None:
    """No rank has over 2 % more than the mean: chunks are of 100 tokens and more, and differ by one."""
    lengths = tuple(data.draw(st.lists(st.integers(200 * n, 400 * n), min_size=1, max_size=3)))
    found = recorded(method, Job(laid("zigzag", lengths, n), CAUSAL))
    for kind in BOTH:
        steps = [[call.pairs for call in one.ran(kind)] for one in found]
        assert all(len(calls) == n for calls in steps)
        for pairs in zip(*steps, strict=True):
            assert max(pairs) * n <= 1.02 * sum(pairs)


def test_it_prints_one_event_a_line() -> None:
    first = recorded("ring", Job(laid("zigzag", (4096,), 2), CAUSAL))[0]
    assert str(first) == RING


RING = """\
forward
send 8388608 B to 1 (shift 0)
run forward 2048 x 2048, 32/8 heads of 128: 2098176 pairs in 1
wait for 8388608 B (0)
run forward 2048 x 2048, 32/8 heads of 128: 2097152 pairs in 1
backward
send 8388608 B to 1 (shift 1)
run backward 2048 x 2048, 32/8 heads of 128: 2098176 pairs in 1
wait for 8388608 B (1)
run backward 2048 x 2048, 32/8 heads of 128: 2097152 pairs in 1
send 16777216 B to 1 (shift 2)
wait for 16777216 B (2)"""
