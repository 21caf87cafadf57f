"""What a placement has its ranks send: bytes of attention in a step, by what link they leave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fourfold.ir.batch import BatchPlan, Move, Team
from fourfold.ir.plan import SIZES
from fourfold.ir.record import Event, Pass, Sent
from fourfold.passes.batch.timing.orders import again
from fourfold.passes.batch.timing.terms import Terms
from fourfold.passes.sequence.tables import table

PASSES: tuple[Pass, ...] = ("forward", "backward")


@dataclass(frozen=True, slots=True)
class Talk:
    """Bytes that the rank that sends most sends in a step: to ranks of its node, and to those of other nodes.

    What weights and gradients need is not in it: it is the static plan's.
    """

    inside: float
    between: float


def talk(batch: BatchPlan, terms: Terms) -> Talk:
    """The most that any rank sends, of the messages of shared attention and of remaps."""
    every = sent(batch, terms)
    return Talk(max(inside for inside, _ in every), max(between for _, between in every))


def sent(batch: BatchPlan, terms: Terms) -> list[tuple[float, float]]:
    """Bytes of each rank in a step, inside its node and between nodes.

    They are those of each method's table, whose ranks send alike but for heads that do not divide: the last is taken. A
    later chunk sends the keys of those before it, too; one that is dropped runs its forward twice.
    """
    found = [[0.0, 0.0] for _ in range(batch.ranks)]
    twice = again(batch, terms.bounds.zero)
    for team in batch.teams:
        if len(team.ranks) == 1:
            continue
        sizes = _sizes(team, terms, twice=(team.ranks[0], team.micro_step) in twice)
        for place, rank in enumerate(team.ranks):
            for offset, size in sizes.items():
                peer = team.ranks[_peer(place, offset, team)]
                found[rank][rank // terms.node != peer // terms.node] += size
    for move in batch.moves:
        far = move.source // terms.node != move.target // terms.node
        for rank, size in zip((move.source, move.target), _moved(move, terms), strict=True):
            found[rank][far] += size
    return [(inside, between) for inside, between in found]


Offset = tuple[int, int]
"""How far a receiver is from its sender: groups that exchange heads, and places inside one, both around."""


def _peer(place: int, offset: Offset, team: Team) -> int:
    """The place in the team that is so far from another."""
    u = team.sharing.ulysses
    return (place // u + offset[0]) % (len(team.ranks) // u) * u + (place + offset[1]) % u


def _sizes(team: Team, terms: Terms, *, twice: bool) -> Mapping[Offset, float]:
    """Bytes that a rank of a team sends, by how far their receiver is."""
    n, many, tokens = len(team.ranks), len(team.pieces), sum(piece.stop for piece in team.pieces)
    found: dict[Offset, float] = {}
    for layer in terms.layers:
        known = table(replace(team.sharing, travel=terms.travel), n, layer.heads, n - 1)
        for kind in PASSES:
            times = layer.calls * (layer.forwards + twice if kind == "forward" else 1.0)
            one, two = (
                _by_offset(recorded.of(kind), n, team.sharing.ulysses) for recorded in (known.once, known.twice)
            )
            for offset, size in one.items():
                # Sizes are straight lines in the length, and so is their sum over documents.
                grown = many * size + (two[offset] - size) * (tokens / known.length - many)
                found[offset] = found.get(offset, 0.0) + times * grown
    return found


def _by_offset(events: Sequence[Event], n: int, u: int) -> Mapping[Offset, int]:
    """Bytes that the last of n ranks sends, by how far their receiver is; u of them exchange heads."""
    found: dict[Offset, int] = {}
    for event in events:
        if isinstance(event, Sent):
            offset = (event.peer // u + 1) % (n // u), (event.peer + 1) % u
            found[offset] = found.get(offset, 0) + event.bytes
    return found


def _moved(move: Move, terms: Terms) -> tuple[float, float]:
    """Bytes that the source and the target of a move send.

    The target sends queries, keys and values of each token to its source, which sends the output back; their gradients
    go the other way.
    """
    source = target = 0.0
    for layer in terms.layers:
        heads, size = layer.heads, layer.heads.width * SIZES[layer.heads.dtype]
        asked, told = (heads.heads + 2 * heads.kv_heads) * size, heads.heads * size
        source += layer.calls * (layer.forwards * told + asked)
        target += layer.calls * (layer.forwards * asked + told)
    return source * move.tokens, target * move.tokens
