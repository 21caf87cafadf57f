"""Bytes of one rank: hand arithmetic for an 8B model, and what ZeRO and bands promise."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourfold.costmodel import memory, state
from fourfold.costmodel.memory import GIB, NOTHING, Band, Memory, exactly
from fourfold.costmodel.state import Held, State, Widths
from fourfold.hardware.machine import Device

MIXED = Widths(master=4, compute=2, reduce=4, optimizer=8)

# Llama 8B: 32 blocks of 218 112 000 parameters, embedding and head of 128256 x 4096, a norm.
BLOCK = 218_112_000
ROOT = 2 * 128256 * 4096 + 4096
WHOLE = 32 * BLOCK + ROOT


def llama(shard: int) -> Held:
    return Held(
        trainable=WHOLE,
        trainable_shard=WHOLE // shard,
        block=BLOCK,
        block_trainable=BLOCK,
        root=ROOT,
        root_trainable=ROOT,
    )


def state_of(zero: int, *, pool: int = 4, micro_steps: int = 1, widths: Widths = MIXED) -> State:
    held = llama(state.shard_size(zero=zero, pool=pool))
    return state.state_memory(held, widths, zero=zero, pool=pool, micro_steps=micro_steps)


bands = st.tuples(st.floats(0, 1e12), st.floats(0, 1e12)).map(lambda ends: Band(min(ends), max(ends)))
helds = st.builds(
    lambda block, blocks, root, frozen, shard: Held(
        trainable=block * blocks + root,
        trainable_shard=-(-(block * blocks + root) // shard),
        block=block,
        block_trainable=block,
        root=root,
        root_trainable=root,
        frozen=frozen,
        frozen_shard=-(-frozen // shard),
    ),
    st.integers(1, 10**9),
    st.integers(1, 100),
    st.integers(0, 10**9),
    st.integers(0, 10**9),
    st.integers(1, 64),
)


def test_zero_3_of_an_8b_model_on_four_ranks() -> None:
    parts = state_of(3)
    assert parts.masters == exactly(WHOLE // 4 * 4)
    assert parts.optimizer == exactly(WHOLE // 4 * 8)
    assert parts.shards == exactly(WHOLE // 4 * 4)
    assert parts.copies == exactly(2 * (ROOT + 2 * BLOCK))
    assert parts.gathering == 2 * (ROOT - BLOCK)  # at the start: the root's buffer, not yet a second block
    assert parts.waiting == NOTHING
    whole_step = state.backward_memory(parts, activations=exactly(20 * GIB))
    assert whole_step.gradients.low == 2 * BLOCK  # the shards grow into the room the activations leave
    assert whole_step.gradients.high == 6 * BLOCK + 2 * ROOT + 8 * BLOCK / 4
    assert whole_step.parameters == parts.masters + parts.copies  # the gathers' buffers are gone by backward


def test_zero_0_holds_masters_and_copies_of_everything() -> None:
    parts = state_of(0)
    assert parts.masters == exactly(4 * WHOLE)
    assert parts.copies == exactly(2 * WHOLE)
    assert parts.optimizer == exactly(8 * WHOLE)


def test_zero_1_keeps_whole_gradients_only_when_it_accumulates() -> None:
    assert state_of(1).waiting == state_of(2, micro_steps=4).waiting == state_of(3, micro_steps=4).waiting == NOTHING
    accumulating = state_of(1, micro_steps=4)
    assert accumulating.waiting == exactly(4 * WHOLE - 4 * (WHOLE // 4))
    bf16_sums = state_of(0, micro_steps=4, widths=replace(MIXED, reduce=2))
    assert bf16_sums.waiting == NOTHING  # the fp32 shards of ZeRO 0 are the larger


def test_without_gradients_the_gathers_of_forward_are_the_peak() -> None:
    frozen = Held(0, 0, block=BLOCK, block_trainable=0, root=0, root_trainable=0, frozen=4 * BLOCK, frozen_shard=BLOCK)
    moment = state.backward_memory(state.state_memory(frozen, MIXED, zero=2, pool=4), activations=NOTHING)
    assert moment.parameters == Band(4 * BLOCK + 2 * 4 * BLOCK, 4 * BLOCK + 2 * 4 * BLOCK + 2 * 2 * BLOCK)


def test_a_large_root_is_reduced_last() -> None:
    """Once the activations are gone, the root's own reduction may be the fullest moment."""
    headed = Held(10 * BLOCK, 5 * BLOCK, block=BLOCK, block_trainable=BLOCK, root=8 * BLOCK, root_trainable=8 * BLOCK)
    parts = state.state_memory(headed, MIXED, zero=3, pool=2)
    gradients = state.backward_memory(parts, activations=exactly(BLOCK)).gradients
    assert gradients.high + BLOCK == 4 * 5 * BLOCK + 8 * BLOCK * (2 + 4) + 8 * BLOCK / 2 * (4 + 4)


@pytest.mark.parametrize("micro_steps", [1, 4])
def test_each_zero_stage_holds_no_more_than_the_one_before(micro_steps: int) -> None:
    totals = [
        state.backward_memory(state_of(zero, micro_steps=micro_steps), activations=exactly(GIB)).total
        for zero in (0, 1, 2, 3)
    ]
    for before, after in pairwise(totals):
        assert after.low <= before.low
        assert after.high <= before.high
    assert totals[3].high < 0.5 * totals[0].low


@given(held=helds, zero=st.integers(0, 3), pool=st.integers(1, 64), micro_steps=st.integers(1, 4), saved=bands)
def test_frozen_parameters_cost_no_gradient_and_no_state(
    held: Held, zero: int, pool: int, micro_steps: int, saved: Band
) -> None:
    def moment(of: Held) -> Memory:
        parts = state.state_memory(of, MIXED, zero=zero, pool=pool, micro_steps=micro_steps)
        return state.backward_memory(parts, activations=saved)

    frozen = replace(
        held,
        trainable=0,
        trainable_shard=0,
        block_trainable=0,
        root_trainable=0,
        frozen=held.trainable + held.frozen,
        frozen_shard=held.trainable_shard + held.frozen_shard,
    )
    assert moment(frozen).gradients == moment(frozen).optimizer == NOTHING
    assert moment(frozen).parameters.low == moment(held).parameters.low
    assert moment(frozen).total.high <= moment(held).total.high


@given(gradients=st.floats(0, 1e12), saved=bands, micro_steps=st.integers(1, 2))
def test_gradients_take_the_room_that_activations_leave(gradients: float, saved: Band, micro_steps: int) -> None:
    empty = state.state_memory(Held(0, 0, 0, 0, 0, 0), MIXED, zero=3, pool=2, micro_steps=micro_steps)
    moment = state.backward_memory(replace(empty, shards=exactly(gradients)), activations=saved)
    both = moment.gradients + moment.activations
    if micro_steps == 1:
        assert both.high == pytest.approx(max(gradients, saved.high))
        assert both.low <= max(gradients, saved.low) * (1 + 1e-9)
    else:
        assert both == saved + exactly(gradients)


def test_the_update_may_be_the_fullest_moment() -> None:
    parts = state_of(0)
    backward = state.backward_memory(parts, activations=exactly(GIB))
    update = state.update_memory(parts)
    assert update.parameters.high == 4 * WHOLE
    assert update.workspace == exactly(4 * WHOLE)
    assert memory.peak(backward, update).total.high == max(backward.total.high, update.total.high)
    fused = state_of(3, widths=replace(MIXED, update=0))
    assert memory.peak(state.update_memory(fused), backward) == backward


@given(first=bands, second=bands)
def test_bands_add_end_by_end(first: Band, second: Band) -> None:
    both = first + second
    assert (both.low, both.high) == (first.low + second.low, first.high + second.high)
    assert (first * 2).high == (first + first).high
    with pytest.raises(AssertionError, match="upwards"):
        Band(second.high + 1, second.high)


def test_a_plan_fits_when_its_upper_bound_does(h200: Device) -> None:
    room = h200.usable - h200.reserve
    assert Memory(activations=exactly(room)).fits(h200)
    straddling = Memory(parameters=exactly(room - GIB), activations=Band(0, 3 * GIB))
    assert not straddling.fits(h200)
    assert straddling.shortfall(h200) == pytest.approx(2 * GIB)


def test_slack_and_buffers_depend_on_what_the_device_runs(h200: Device) -> None:
    moment = state.backward_memory(state_of(3), activations=Band(10 * GIB, 20 * GIB))
    dynamic = state_of(3).copies + moment.gradients + moment.activations
    assert moment.slack == Band(0.02 * dynamic.low, 0.08 * dynamic.high)
    cpu = replace(h200, vendor="cpu", collectives="gloo")
    assert memory.communicator_memory(3, cpu) == memory.library_workspace(cpu) == NOTHING
    three = memory.communicator_memory(3, h200)
    assert three.low == pytest.approx(0.6 * GIB)
    assert three.high == pytest.approx(1.8 * GIB)


def test_what_a_step_saves_and_works_with() -> None:
    assert memory.activation_memory(saved=10, replayed=3, working=2, in_flight=4) == Band(43, 45)
    assert memory.logits_memory(chunk=1024, vocabulary=1000, width=2) == Band(4 * 1024e3, 10 * 1024e3)
    multi_head = memory.attention_workspace(tokens=8, heads=4, kv_heads=4, head_dim=2, width=2)
    assert multi_head == Band(0, 4 * 64)
    grouped = memory.attention_workspace(tokens=8, heads=4, kv_heads=1, head_dim=2, width=2)
    assert grouped == Band(0, 8 * 64)


def test_shards_are_rows_and_padded() -> None:
    assert [memory.shard_elements((8, 10), shard) for shard in (1, 2, 6, 8, 16)] == [80, 40, 20, 10, 10]
    assert memory.shard_elements((), 4) == 1
    assert memory.shard_elements((7,), 2) == 4


def test_text_shows_what_is_there() -> None:
    moment = Memory(parameters=exactly(2 * GIB), activations=Band(GIB, 3 * GIB))
    assert str(moment) == (
        "parameters                2.00 GiB\nactivations          1.00-3.00 GiB\ntotal                3.00-5.00 GiB"
    )
