"""Moves of tokens between ranks for all that is not attention, where evening them out takes less than it saves.

Decides: which ranks' regions run which tokens, in each micro-step. Given: a placement. Minimises: seconds of the step.
Subject to: the capacity; only ranks that run the micro-step, none of which both gives and takes.
Source: Zeppelin (arXiv 2509.21841), its remapping layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from fourfold.ir.batch import BatchPlan, Move
from fourfold.passes.batch.timing.clock import Loaded, clocked, loaded, micro_step
from fourfold.passes.batch.timing.terms import Terms

LEVELS = 8
"""How many heights between the mean and the fullest rank are tried, to which the fullest ranks give."""


def remapped(batch: BatchPlan, terms: Terms) -> BatchPlan:
    """The same placement with a remap in each micro-step where it shortens the step; never slower."""
    loads = loaded(batch, terms)
    steps = {step: micro_step(load, (), terms) for step, load in loads.items()}
    best = clocked(steps.values(), terms)
    kept: list[Move] = []
    for step, load in loads.items():
        chosen: tuple[Move, ...] = ()
        for moves in _tried(step, load, batch.capacity, terms):
            tried = {**steps, step: micro_step(load, moves, terms)}
            seconds = clocked(tried.values(), terms)
            if seconds < best:
                best, steps, chosen = seconds, tried, moves
        kept += chosen
    return replace(batch, moves=tuple(kept))


def _tried(step: int, load: Loaded, capacity: int, terms: Terms) -> Iterator[tuple[Move, ...]]:
    """The moves that bring the fullest ranks of a micro-step down to each height, without those that move nothing."""
    held = load.held
    most, total = max(held.values()), sum(held.values())
    mean = -(-total // len(held))
    seen: set[int] = set()
    for at in range(LEVELS):
        level = mean + (most - mean) * at // LEVELS
        if level >= most or level in seen:
            continue
        seen.add(level)
        surplus = {rank: tokens - level for rank, tokens in held.items() if tokens > level}
        deficit = {rank: room for rank, tokens in held.items() if (room := min(level, capacity) - tokens) > 0}
        found = nearest(surplus, deficit, terms.node)
        yield tuple(Move(step, source, target, tokens) for source, target, tokens in found)


def nearest(surplus: Mapping[int, int], deficit: Mapping[int, int], node: int) -> list[tuple[int, int, int]]:
    """(source, target, tokens) that bring as much of the surplus as finds room, as few as can be to another node.

    With two kinds of links this is the flow of least cost: what a node can keep, it keeps, and all else crosses once,
    wherever it goes. The fullest give to the emptiest first, so that messages are few.
    """
    giving, taking = dict(surplus), dict(deficit)
    found = []
    gives, takes = _by_node(giving, node), _by_node(taking, node)
    for number in sorted(gives.keys() & takes.keys()):
        found += _matched(gives[number], takes[number])
    for source, target, tokens in found:
        giving[source] -= tokens
        taking[target] -= tokens
    return found + _matched(giving, taking)


def _by_node(counts: Mapping[int, int], node: int) -> dict[int, dict[int, int]]:
    found: dict[int, dict[int, int]] = {}
    for rank, n in counts.items():
        found.setdefault(rank // node, {})[rank] = n
    return found


def _matched(giving: Mapping[int, int], taking: Mapping[int, int]) -> list[tuple[int, int, int]]:
    """The fullest to the emptiest until one side is done."""
    sources, targets = _largest_last(giving), _largest_last(taking)
    found = []
    while sources and targets:
        (n, source), (room, target) = sources.pop(), targets.pop()
        tokens = min(n, room)
        found.append((source, target, tokens))
        sources += [(n - tokens, source)] * (n > tokens)
        targets += [(room - tokens, target)] * (room > tokens)
    return found


def _largest_last(counts: Mapping[int, int]) -> list[tuple[int, int]]:
    pairs: Sequence[tuple[int, int]] = [(n, -rank) for rank, n in counts.items() if n]
    return [(n, -rank) for n, rank in sorted(pairs)]
