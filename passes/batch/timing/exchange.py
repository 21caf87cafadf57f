"""Seconds of a remap: tokens that one rank's regions run for another go to and fro around every attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fourfold.costmodel.collective import collective_time
from fourfold.hardware.machine import Crossing
from fourfold.hardware.topology import Machine
from fourfold.ir.batch import Move
from fourfold.ir.plan import SIZES
from fourfold.passes.batch.timing.terms import Terms


def exchanged(moves: Sequence[Move], terms: Terms) -> Mapping[int, float]:
    """Seconds of all exchanges of one micro-step, by rank that moves tokens.

    Each attention sends queries, keys and values of a moved token to its source and its output back; the backward sends
    as much the other way. What goes to ranks of the node and of other nodes crosses links of its own, all at once.
    """
    moved: dict[int, list[int]] = {}
    for move in moves:
        far = move.source // terms.node != move.target // terms.node
        for rank in (move.source, move.target):
            moved.setdefault(rank, [0, 0])[far] += move.tokens
    machine = terms.machine
    links = [machine.group(2, nodes) if any(each[nodes - 1] for each in moved.values()) else None for nodes in (1, 2)]
    known = {counts: _seconds(counts, links, terms) for counts in {tuple(each) for each in moved.values()}}
    return {rank: known[tuple(each)] for rank, each in moved.items()}


def _seconds(counts: Sequence[int], links: Sequence[Crossing | None], terms: Terms) -> float:
    """Seconds around all attentions of a rank that gives or takes so many tokens over each kind of link."""
    total = 0.0
    for layer in terms.layers:
        heads, size = layer.heads, layer.heads.width * SIZES[layer.heads.dtype]
        for width in ((heads.heads + 2 * heads.kv_heads) * size, heads.heads * size):
            slowest = max(_sent(n * width, link, terms.machine) for n, link in zip(counts, links, strict=True))
            total += layer.calls * (layer.forwards + 1.0) * slowest
    return total


def _sent(size: float, links: Crossing | None, machine: Machine) -> float:
    if links is None:
        return 0.0
    return collective_time("send_recv", size, links, calibration=machine.calibration, group=machine.group)
