"""Bytes of parameters, gradients and optimizer state one rank holds under FSDP2, by ZeRO stage.

Read from torch's own fully_shard (2.13, the same in 2.11):
a unit's gather fills one buffer, is copied out into the parameters, and in forward the buffer is
kept until the next unit's copy; a unit's gradients are copied into one reduce-scatter input, which
is kept until the next unit's; the root unit's gradients wait for the end of backward.
"""

from __future__ import annotations

from dataclasses import dataclass

from fourfold.costmodel.memory import NOTHING, Band, Memory, allocator_slack, exactly


@dataclass(frozen=True, slots=True)
class Held:
    """Parameter elements of one rank, after tensor and pipeline cuts.

    `trainable` and `frozen` count whole parameters, the `_shard` fields what the rank stores of them
    (`shard_elements` over `shard_size` ranks). `block` is the largest unit gathered at once besides
    the root, `root` the unit that stays gathered; their `_trainable` fields leave frozen elements out.
    """

    trainable: int
    trainable_shard: int
    block: int
    block_trainable: int
    root: int
    root_trainable: int
    frozen: int = 0
    frozen_shard: int = 0


@dataclass(frozen=True, slots=True)
class Widths:
    """Bytes of one element: master parameters, compute copies, gradients in reduction, optimizer state.

    `update` is what the optimizer's step needs for a moment (AdamW over lists of tensors: one fp32
    copy of the shard; fused: nothing).
    """

    master: int
    compute: int
    reduce: int
    optimizer: int
    update: int = 4


@dataclass(frozen=True, slots=True)
class State:
    """What parameters cost over a step.

    Always there: `masters`, `optimizer`. Within a step: `copies` (gathered parameters), `shards` (the
    gradients the optimizer reads), `waiting` (whole gradients not yet reduced, beyond the shards),
    `in_flight`. At the optimizer's step only: `update`. `grown`: the gradients appear only while
    the activations are given back, because the step has one micro-step.
    """

    masters: Band
    copies: Band
    shards: Band
    waiting: Band
    in_flight: Band
    optimizer: Band
    update: Band
    grown: bool


def shard_size(*, zero: int, pool: int) -> int:
    """How many ranks of the pool share one copy of the masters: ZeRO 0 replicates, 1 to 3 shard over all."""
    assert zero in (0, 1, 2, 3) and pool >= 1, (zero, pool)
    return 1 if zero == 0 else pool


def state_memory(held: Held, widths: Widths, *, zero: int, pool: int, micro_steps: int = 1) -> State:
    """What the parameters of one rank cost under ZeRO stage `zero` over `pool` ranks and `micro_steps` a step.

    Frozen parameters are stored and gathered, but have neither gradient nor optimizer state.
    """
    assert micro_steps >= 1, micro_steps
    shard = shard_size(zero=zero, pool=pool)
    return State(
        masters=exactly((held.trainable_shard + held.frozen_shard) * widths.master),
        copies=_copies(held, widths, zero=zero, shard=shard),
        shards=exactly(held.trainable_shard * widths.master),
        waiting=_waiting(held, widths, zero=zero, micro_steps=micro_steps),
        in_flight=_in_flight(held, widths, zero=zero, shard=shard),
        optimizer=exactly(held.trainable_shard * widths.optimizer),
        update=exactly(held.trainable_shard * widths.update),
        grown=micro_steps == 1,
    )


def backward_memory(
    state: State,
    *,
    activations: Band,
    logits: Band = NOTHING,
    workspace: Band = NOTHING,
    communicators: Band = NOTHING,
) -> Memory:
    """The fullest moment of forward and backward.

    With one micro-step the gradients grow block by block as the activations are given back, so only
    their excess over the activations adds to the peak (blocks taken as equal); with more, they are
    there from the first.
    """
    kept = _excess(state.shards, activations) if state.grown else state.shards + state.waiting
    gradients = kept + state.in_flight
    return Memory(
        parameters=state.masters + state.copies,
        gradients=gradients,
        optimizer=state.optimizer,
        activations=activations,
        logits=logits,
        workspace=workspace,
        communicators=communicators,
        slack=allocator_slack(state.copies + gradients + activations + logits),
    )


def update_memory(state: State, *, communicators: Band = NOTHING) -> Memory:
    """The moment of the optimizer's step: no activation is left, but the update may need copies of the shard."""
    return Memory(
        parameters=state.masters,
        gradients=state.shards,
        optimizer=state.optimizer,
        workspace=state.update,
        communicators=communicators,
        slack=allocator_slack(state.shards + state.update),
    )


def _copies(held: Held, widths: Widths, *, zero: int, shard: int) -> Band:
    """Gathered parameters in the compute dtype, and the gather's buffers.

    FSDP2 copies even where nothing is to be gathered, so ZeRO 0 holds masters and copies. ZeRO 3:
    the root, the current block and the buffer of the next (lower); in forward the buffer of the
    current one is still held, or the root's larger one is not yet returned (upper).
    """
    buffers = max(2 * held.block, held.root) if shard > 1 else 0
    if zero < 3:
        whole = held.trainable + held.frozen
        return Band(whole, whole + buffers) * widths.compute
    ahead = held.block if shard > 1 else 0
    current = held.root + held.block
    return Band(current + ahead, current + buffers) * widths.compute


def _waiting(held: Held, widths: Widths, *, zero: int, micro_steps: int) -> Band:
    """Whole gradients in the reduce dtype where the reduction waits for the last micro-step (ZeRO 0 and 1).

    Only what exceeds the shards: the last backward gives them back unit by unit as the shards
    appear. Upper under ZeRO 1: none given back before all shards are there.
    """
    if zero >= 2 or micro_steps == 1:
        return NOTHING
    whole = float(held.trainable * widths.reduce)
    beyond = max(0.0, whole - held.trainable_shard * widths.master)
    return exactly(beyond) if zero == 0 else Band(beyond, whole)


def _in_flight(held: Held, widths: Widths, *, zero: int, shard: int) -> Band:
    """Gradients on their way: the block just computed, the reduce-scatter input of the one before, its result.

    The root's wait until the end (upper). Replicated parameters keep an all-reduce buffer as well.
    """
    block, root = held.block_trainable, held.root_trainable
    waiting = block * (widths.compute + widths.reduce) + root * widths.compute
    last = root * (widths.compute + widths.reduce)
    result = max(block, root) / shard * (widths.reduce + widths.master)
    replicated = max(block, root) * widths.reduce if zero == 0 else 0
    return Band(block * widths.compute, max(waiting, last) + result + replicated)


def _excess(gradients: Band, activations: Band) -> Band:
    """How far the gradients outgrow the activations that made room for them: max(A, G) - A for either bound."""
    high = max(0.0, gradients.high - activations.high)
    return Band(min(high, max(0.0, gradients.low - activations.low)), high)
