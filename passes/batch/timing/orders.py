"""The order in which a rank of the pool runs its micro-steps of a batch: chunks by their chains, shared ones alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from fourfold.hardware.errors import UsageError
from fourfold.ir.batch import BatchPlan
from fourfold.ir.batch_rules import of_sequences
from fourfold.ir.plan import SPLIT, VIRTUAL
from fourfold.ir.schedule import STAGEWISE, Action, Schedule, in_turn
from fourfold.passes.schedule import scheduled
from fourfold.passes.schedule.sends import with_sends
from fourfold.passes.schedule.state_aware import dropped, state_aware

Blocks = tuple[tuple[int, ...], ...]
"""Micro-steps that go forward together before they go backward, each block before the next."""


def schedule_of(batch: BatchPlan, rank: int, *, stages: int, zero: int, kind: str, order: str = "") -> Schedule:
    """What a rank of the pool runs, with its messages; micro-steps count its own, in the order of the batch's.

    Ranks that share a team or move tokens, themselves or through others, wait for each other: they take one schedule
    over the micro-steps of all of them, and each leaves out those it does not run; so what two of them run stands in
    the same order on both, and no wait can close a circle. Under ZeRO 2 and 3 all ranks are such, and leave out none.
    Without chunks that schedule is `kind` (`order` is its text where it was solved), or forward and backward in turn
    on one stage; with chunks it is state-aware 1F1B. A rank that has no piece runs one empty micro-step: its gradients
    are reduced like those of others. Raises UsageError for chunks where a rank holds several stages.
    """
    ranks = next(found for found in _waiting(batch, zero) if rank in found)
    steps, mine = _steps(batch, ranks, zero), _steps(batch, {rank}, zero)
    number = {step: at for at, step in enumerate(steps or (0,))}
    chains = [held for place, held in _chains(batch) if place in ranks]
    blocks = tuple(tuple(number[step] for step in block) for block in _blocks(chains, steps or (0,)))
    if any(len(block) > 1 for block in blocks):
        whole = _chunked(stages, blocks, batch.retained, kind)
    else:
        whole = in_turn(len(number)) if stages == 1 else scheduled(kind, stages, len(number), order=order)
    return _kept(whole, {number[step]: at for at, step in enumerate(mine or (0,))})


def again(batch: BatchPlan, zero: int) -> frozenset[tuple[int, int]]:
    """(rank, micro-step) of all forwards that run twice."""
    chains = _chains(batch)
    found: set[tuple[int, int]] = set()
    for ranks in _waiting(batch, zero) if chains else ():
        twice = dropped(_blocks([held for place, held in chains if place in ranks], ()), batch.retained)
        found |= {(rank, step) for rank in ranks for step in twice if zero > 1 or (rank, step) in batch.held}
    return frozenset(found)


def _chunked(stages: int, blocks: Blocks, retained: int, kind: str) -> Schedule:
    """State-aware 1F1B; where the program splits backwards, W right behind I."""
    if kind in VIRTUAL and stages > 1:
        raise UsageError(
            f"the batch cuts sequences into chunks, which {kind} cannot run: plan with --pin schedule=1f1b, or take a "
            "policy that cuts none"
        )
    whole, split = state_aware(stages, blocks, retained), kind in SPLIT and stages > 1
    if split:
        halves = {"B": ("I", "W")}
        lines = ((replace(a, kind=k) for a in line for k in halves.get(a.kind, (a.kind,))) for line in whole.lines)
        whole = Schedule.of(list(lines))
    return with_sends(whole, ahead=int(split))


def _waiting(batch: BatchPlan, zero: int) -> list[set[int]]:
    """Ranks that wait for each other."""
    everyone = range(batch.ranks)
    if zero > 1:
        return [set(everyone)]
    shared = {piece.ranks for piece in batch.pieces} | {(move.source, move.target) for move in batch.moves}
    return _connected([*shared, *((rank,) for rank in everyone)])


def _steps(batch: BatchPlan, ranks: Iterable[int], zero: int) -> Sequence[int]:
    """The micro-steps that some of these ranks run."""
    if zero > 1:
        return range(batch.micro_steps)
    some = set(ranks)
    return sorted({piece.micro_step for piece in batch.pieces if not some.isdisjoint(piece.ranks)})


def _chains(batch: BatchPlan) -> list[tuple[int, tuple[int, ...]]]:
    """One rank and the micro-steps of every sequence that has several chunks."""
    found = (pieces for pieces in of_sequences(batch) if len(pieces) > 1)
    return [(pieces[0].ranks[0], tuple(piece.micro_step for piece in pieces)) for pieces in found]


def _blocks(chains: Sequence[tuple[int, ...]], steps: Sequence[int]) -> Blocks:
    """The micro-steps of one sequence together, and of sequences with chunks in the same one; others by themselves."""
    found = _connected([*dict.fromkeys(chains), *((step,) for step in steps)])
    return tuple(sorted(tuple(sorted(block)) for block in found))


def _connected(groups: Iterable[Sequence[int]]) -> list[set[int]]:
    """Numbers that stand in one group, or in groups that overlap."""
    found: list[set[int]] = []
    for group in groups:
        touched = [one for one in found if not one.isdisjoint(group)]
        found = [one for one in found if one.isdisjoint(group)]
        found.append(set(group).union(*touched))
    return found


def _kept(whole: Schedule, number: Mapping[int, int]) -> Schedule:
    """The schedule without other micro-steps than these, which get new numbers."""
    lines = (
        [_renumbered(a, number) for a in line if a.kind in STAGEWISE or a.micro_step in number] for line in whole.lines
    )
    return Schedule.of(list(lines))


def _renumbered(action: Action, number: Mapping[int, int]) -> Action:
    return action if action.kind in STAGEWISE else replace(action, micro_step=number[action.micro_step])
