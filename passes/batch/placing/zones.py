"""How far a sequence may be shared at no cost: lengths at which attention takes as long as the messages it needs."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, inf, log
from typing import Literal

from fourfold.passes.batch.timing.terms import LENGTHS, Terms

METHOD = "ring"
"""How ranks share a sequence."""

Zone = Literal["local", "intra", "inter"]


@dataclass(frozen=True, slots=True)
class Zones:
    """Tokens from which a ring hides its messages: inside a node, and over several; infinite where none does."""

    intra: float
    inter: float

    def of(self, length: int) -> Zone:
        """The widest zone in which a sequence costs no waits."""
        return "inter" if length >= self.inter else "intra" if length >= self.intra else "local"


NOWHERE = Zones(inf, inf)
"""No sequence is shared at no cost."""


def zones(terms: Terms) -> Zones:
    """The zones of a pool: the smallest rings inside a node and over two, where there are such.

    A ring over nodes never needs less than one inside. Source: Zeppelin (arXiv 2509.21841), whose three zones these
    are.
    """
    pool, node = terms.bounds.ranks, terms.node
    intra = crossing(terms, 2) if min(pool, node) > 1 else inf
    inter = crossing(terms, min(pool, 2 * node)) if pool > node else inf
    return Zones(min(intra, inter), inter)


def crossing(terms: Terms, ranks: int) -> float:
    """The length from which a ring of so many neighbours computes longer than its messages travel.

    Between two lengths of the grid the ratio is a power of the length.
    """
    before: tuple[int, float] | None = None
    for length in LENGTHS:
        ratio = useful(length, ranks, terms) / terms.travelled(length, ranks, METHOD)
        if ratio >= 1.0:
            if before is None:
                return float(length)
            share = -log(before[1]) / (log(ratio) - log(before[1]))
            return float(ceil(before[0] * (length / before[0]) ** share))
        before = length, ratio
    return inf


def useful(length: int, ranks: int, terms: Terms) -> float:
    """Seconds of a rank's share of one document's attention, were it as fast as that of the longest.

    It grows with the square of the length, and messages with the length: the two cross once. What short documents take
    beyond it is lost whether messages hide behind it or not.
    """
    share: float = length / LENGTHS[-1]
    return terms.alone(LENGTHS[-1]) * share * share / ranks
