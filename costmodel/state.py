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
    """What parameters cost at each moment of a step.

    Always there: `masters`, `optimizer`. From a unit's first use on: `copies`, its gathered parameters;
    in forward `gathering`, the gathers' buffers. In backward: `shards` (the gradients the optimizer
    reads), `waiting` (whole gradients not yet reduced, beyond the shards), `in_flight` (those of the
    block at hand), and at its end `last` (those of the root). At the optimizer's step: `update`.
    `grown`: the gradients appear only while the activations are given back (one micro-step).
    """

    masters: Band
    copies: Band
    gathering: float
    shards: Band
    waiting: Band
    in_flight: Band
    last: float
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
    block, root = held.block_trainable, held.root_trainable
    copies = held.trainable + held.frozen if zero < 3 else held.root + held.block * min(shard, 2)
    # Replicated parameters keep the buffer of the all-reduce before, unless it is the gradient itself.
    kept = block * widths.reduce if zero == 0 and widths.reduce != widths.master else 0
    waiting = root * widths.compute
    return State(
        masters=exactly((held.trainable_shard + held.frozen_shard) * widths.master),
        copies=exactly(copies * widths.compute),
        gathering=_gathering(held, zero=zero, shard=shard) * widths.compute,
        shards=exactly(held.trainable_shard * widths.master),
        waiting=_waiting(held, widths, zero=zero, micro_steps=micro_steps),
        in_flight=Band(block * widths.compute, waiting + kept + _reducing(block, widths, shard=shard)),
        last=kept + _reducing(root, widths, shard=shard),
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
    """The fullest moment of forward and backward: its end, its beginning or somewhere between, whichever holds most.

    With one micro-step the gradients grow block by block as the activations are given back, so only
    their excess over the activations adds to the peak (blocks taken as equal; lower bound: the gathered
    copies make room as well). With more micro-steps they are there from the first.
    """
    gradients = _gradients(state, activations=activations)
    before = 0.0 if state.grown else (state.shards + state.waiting).high
    gathering = Band(0.0, max(0.0, before + state.gathering - gradients.high))
    return Memory(
        parameters=state.masters + state.copies + gathering,
        gradients=gradients,
        optimizer=state.optimizer,
        activations=activations,
        logits=logits,
        workspace=workspace,
        communicators=communicators,
        slack=allocator_slack(state.copies + gathering + gradients + activations + logits),
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


def _gathering(held: Held, *, zero: int, shard: int) -> int:
    """Elements of gather buffers that forward holds beyond the copies.

    The unit at hand is copied out of its buffer while the next one's fills: two blocks, or at the
    start the root. Under ZeRO 3 the copies already count the block that is fetched ahead.
    """
    if shard == 1:
        return 0
    return max(2 * held.block, held.root) - (held.block if zero == 3 else 0)


def _waiting(held: Held, widths: Widths, *, zero: int, micro_steps: int) -> Band:
    """Whole gradients in the reduce dtype where the reduction waits for the last micro-step (ZeRO 0 and 1).

    Only what exceeds the shards: the last backward gives them back unit by unit as the shards appear.
    """
    if zero >= 2 or micro_steps == 1:
        return NOTHING
    whole = float(held.trainable * widths.reduce)
    return exactly(max(0.0, whole - held.trainable_shard * widths.master))


def _reducing(unit: int, widths: Widths, *, shard: int) -> float:
    """Bytes while one unit of `unit` elements is reduced: its gradients, the reduce-scatter's input and result."""
    return unit * (widths.compute + widths.reduce) + unit / shard * (widths.reduce + widths.master)


def _gradients(state: State, *, activations: Band) -> Band:
    """Gradients at the fullest moment, beyond the activations of that moment.

    In the middle of backward, or at its end, when the activations are gone and the root's are reduced.
    """
    kept = state.shards + state.waiting
    at_end = kept.high + state.last - activations.high
    if not state.grown:
        return Band(kept.low + state.in_flight.low, max(kept.high + state.in_flight.high, at_end))
    low = max(0.0, kept.low - activations.low - state.copies.low) + state.in_flight.low
    high = max(max(0.0, kept.high - activations.high) + state.in_flight.high, at_end)
    return Band(min(low, high), high)
