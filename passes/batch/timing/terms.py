"""What the placement of a batch is priced by: seconds of a micro-step on a rank, of attention alone and shared.

Made once for a static plan. A micro-step costs a + b tokens, from the same work that prices the plan at two loads;
attention of a document comes from the recorded events of its method, looked up on a grid of lengths.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import ceil, exp, gcd, log
from typing import Protocol

from fourfold.costmodel.kernel import attention_time
from fourfold.hardware.topology import Machine
from fourfold.ir.batch_rules import Bounds
from fourfold.ir.mesh import Mesh
from fourfold.ir.plan import Sharing
from fourfold.passes.sequence.routing import OWN_PORT, Routing
from fourfold.passes.sequence.shared import RATES, Shared
from fourfold.passes.sequence.tables import Heads

NEAR = 16
"""Ranks up to which each number of them is looked up; of more, some are, and others lie between."""

LEAST = 1e-9
"""Seconds that no attention is below: documents of fewer tokens than ranks leave some without work."""

LENGTHS = tuple(2**power for power in range(4, 24))
"""Lengths at which shared attention is looked up; between them time is a power of the length."""


class Asked(Protocol):
    """Seconds of one pass of an attention over documents of `length`, `tokens` in all."""

    def __call__(self, heads: Heads, /, *, length: int, tokens: float, backward: bool) -> float:
        """The seconds."""


SLOWED = 0.13
"""Seconds by which compute is longer for each second of copies beside it. Source: two H200 whose micro-steps left half
of what they kept to the host (benchmarks/results/online-h200x2): 0.36 s a step for 2.8 s of copies."""


@dataclass(frozen=True, slots=True)
class Layer:
    """Attentions that are alike: heads of a tensor rank, how many calls, how often the forward runs in a micro-step."""

    heads: Heads
    calls: int
    forwards: float


@dataclass(frozen=True)
class Terms:
    """What a static plan and its machine give to whoever places a batch.

    fixed, linear: seconds of a micro-step, and of each token in it, on a rank, attention left out; forward, backward
    and what is computed again. once: seconds of a step outside its micro-steps. node: neighbours in the pool, by how
    many lie in one node. routing: over which ports rings send between nodes; the engine's ranks send over their own.
    forward: the share of a micro-step that is a first forward. kept: bytes that a token keeps for its backward. host:
    bytes a second to the host's memory; launch: the least seconds of a micro-step that leaves something there.
    stages: ranks of a line of pipeline stages, of which the slowest runs the share `slowest` of a micro-step. full:
    tokens of a rank when the seconds of a document among others are asked, its capacity where 0.
    """

    machine: Machine
    bounds: Bounds
    tensor: int
    node: int
    fixed: float
    linear: float
    once: float
    layers: tuple[Layer, ...]
    travel: str
    routing: Routing = OWN_PORT
    forward: float = 1 / 3
    kept: float = 0.0
    host: float = 0.0
    launch: float = 0.0
    stages: int = 1
    slowest: float = 1.0
    full: int = 0
    _known: dict[tuple[str, int, int], float] = field(default_factory=dict, init=False, repr=False)
    _best: dict[tuple[int, int], tuple[float, str]] = field(default_factory=dict, init=False, repr=False)
    _sent: dict[tuple[str, int, int], float] = field(default_factory=dict, init=False, repr=False)
    _waits: dict[tuple[str, int, int], float] = field(default_factory=dict, init=False, repr=False)

    def within(self, bounds: Bounds) -> Terms:
        """The same seconds within other bounds of the same pool; what is looked up is known to both."""
        found = replace(self, bounds=bounds, full=self.full or self.bounds.capacity)
        vars(found).update({name: known for name, known in vars(self).items() if name.startswith("_")})
        return found

    def alone(self, length: int) -> float:
        """Seconds of attention over one document on one rank; launches are in `fixed`."""
        key = ("whole", 1, length)
        if key not in self._known:
            self._known[key] = sum(layer.calls * self._alone(layer, length) for layer in self.layers)
        return self._known[key]

    @cached_property
    def attends(self) -> float:
        """The share of attention that is a first forward, in a document that fills a rank."""
        length = self.bounds.capacity
        first = sum(layer.calls * self._passes(layer, length)[0] for layer in self.layers)
        return first / max(LEAST, self.alone(length))

    def exposed(self, share: float, tokens: int, seconds: float) -> float:
        """Seconds by which a micro-step of `seconds` is longer as a share of what it keeps goes to the host, and back.

        What it waits for, and what copies slow the compute beside them; or until the host has launched all of it.
        """
        if not share:
            return 0.0
        copying, first = share * tokens * self.kept / self.host, self.forward * seconds
        waits = max(0.0, copying - first) + max(0.0, copying - (seconds - first))
        return max(waits + 2 * SLOWED * copying, self.launch - seconds)

    def shared(self, length: int, ranks: int, method: str) -> float:
        """Seconds of attention over one document that `ranks` neighbours share, among others that fill them."""
        if ranks == 1:
            return self.alone(length)
        few, many, more = self._degrees(method, ranks)
        low, high, share = _around(length)
        first, second = (self._at(method, n, low, high, share) for n in (few, many))
        return exp(_between(log(first), log(second), more))

    def waits(self, length: int, ranks: int, method: str) -> float:
        """Those seconds of `shared` in which a rank waits for messages and computes nothing of this document."""
        if ranks == 1:
            return 0.0
        few, many, more = self._degrees(method, ranks)
        low, high, share = _around(length)
        first, second = (
            _between(self._waited(method, n, low), self._waited(method, n, high), share) for n in (few, many)
        )
        return min(1.0, max(0.0, _between(first, second, more))) * self.shared(length, ranks, method)

    def fastest(self, length: int, ranks: int) -> tuple[float, str]:
        """Seconds of attention over one document on `ranks` neighbours, and the method that takes the least."""
        if (length, ranks) not in self._best:
            self._best[length, ranks] = self._fastest(length, ranks)
        return self._best[length, ranks]

    def _fastest(self, length: int, ranks: int) -> tuple[float, str]:
        if ranks == 1:
            return self.alone(length), "whole"
        return min((self.shared(length, ranks, method), method) for method in self.methods(ranks))

    def methods(self, ranks: int) -> tuple[str, ...]:
        """By which so many ranks may share: all exchange heads, if there are enough, or some in each node do."""
        found, u = ["ring", "gather_kv"], self.exchanging(ranks)
        found += ["ulysses"] if ranks <= self.bounds.heads else []
        return (*found, f"usp{u}") if 1 < u < ranks else tuple(found)

    def exchanging(self, ranks: int) -> int:
        """How many neighbours of one node may exchange heads, so that a ring over such groups holds all ranks: as many
        as leave the fullest rank its even share of heads, or nearly so."""
        even, heads = ranks if ranks <= self.node else gcd(ranks, self.node), self.bounds.heads
        able = (u for u in range(1, min(even, heads) + 1) if even % u == 0)
        return max(able, key=lambda u: (-ceil(heads / u) * u, u))

    def task(self, length: int, ranks: int) -> float:
        """Seconds that one sequence takes each of `ranks` neighbours, micro-steps not counted."""
        return self.linear * length / ranks + self.fastest(length, ranks)[0]

    def _at(self, method: str, ranks: int, low: int, high: int, share: float) -> float:
        """`shared` at a degree that is looked up: between two lengths, time is a power of the length."""
        first, second = self._looked_up(method, ranks, low), self._looked_up(method, ranks, high)
        return exp(_between(log(first), log(second), share))

    def _degrees(self, method: str, ranks: int) -> tuple[int, int, float]:
        """The degrees looked up around one, and how far it is, by its logarithm, on the way; itself where it is few.

        Of more than NEAR ranks those of the form 2^k and 3 x 2^k are, and those on both sides of the size of a node,
        where messages begin to cross to another: a recording takes as many steps as there are ranks. Where some
        exchange heads, those that are whole groups of them.
        """
        if ranks <= NEAR:
            return ranks, ranks, 0.0
        some = 1 if method == "ulysses" else Sharing.named(method, ranks).ulysses
        pool, node = self.bounds.ranks, self.node
        sizes = [size for k in range(ranks.bit_length() + 1) for size in (2**k, 3 * 2**k)]
        sizes += [node, node + some - node % some, pool - pool % some, NEAR]
        sizes = [size for size in sizes if size % some == 0 and some < size <= pool]
        low = max((size for size in sizes if size <= ranks), default=ranks)
        high = min((size for size in sizes if size >= ranks), default=ranks)
        return low, high, log(ranks / low) / log(high / low) if high > low else 0.0

    def _looked_up(self, method: str, ranks: int, length: int) -> float:
        key = (method, ranks, length)
        if key not in self._known:
            found = sum(layer.calls * self._shared(layer, *key) for layer in self.layers)
            self._known[key] = max(found, LEAST)
        return self._known[key]

    def _waited(self, method: str, ranks: int, length: int) -> float:
        """The share of `_looked_up` in which messages are waited for."""
        key = (method, ranks, length)
        if key not in self._waits:
            computed = sum(layer.calls * self._computed(layer, *key) for layer in self.layers)
            self._waits[key] = max(0.0, 1.0 - computed / self._looked_up(*key))
        return self._waits[key]

    def travelled(self, length: int, ranks: int, method: str) -> float:
        """Seconds of one document's messages, one after the other, where others like it fill so many neighbours."""
        few, many, more = self._degrees(method, ranks)
        return _between(self._travelled(method, few, length), self._travelled(method, many, length), more)

    def _travelled(self, method: str, ranks: int, length: int) -> float:
        key = (method, ranks, length)
        if key not in self._sent:
            seconds = self.group(method, ranks).travelled
            self._sent[key] = sum(layer.calls * self._of_both(seconds, layer, ranks, length) for layer in self.layers)
        return self._sent[key]

    def group(self, method: str, ranks: int) -> Shared:
        """So many neighbours that share by this method."""
        sharing = replace(Sharing.named(method, ranks), travel=self.travel)
        return Shared(self.machine, Mesh(tp=self.tensor, sp=ranks), sharing, self.routing)

    def _computed(self, layer: Layer, method: str, ranks: int, length: int) -> float:
        return self._of_both(self.group(method, ranks).computed, layer, ranks, length)

    def _shared(self, layer: Layer, method: str, ranks: int, length: int) -> float:
        return self._of_both(self.group(method, ranks).seconds, layer, ranks, length)

    def _of_both(self, seconds: Asked, layer: Layer, ranks: int, length: int) -> float:
        """One document's part of the seconds of all forwards and the backward of as many as fill the ranks."""
        many = max(1, ranks * (self.full or self.bounds.capacity) // length)
        forward, backward = (
            seconds(layer.heads, length=length, tokens=float(many * length), backward=b) for b in (False, True)
        )
        return (layer.forwards * forward + backward) / many

    def _alone(self, layer: Layer, length: int) -> float:
        forward, backward = self._passes(layer, length)
        return layer.forwards * forward + backward

    def _passes(self, layer: Layer, length: int) -> tuple[float, float]:
        """Seconds of one forward and one backward over a document on one rank, launches left out."""
        heads, device = layer.heads, self.machine.device
        pairs = length * (length + 1) / 2 if heads.causal else float(length) * length
        flops, dtype = 4.0 * heads.heads * heads.width * pairs, RATES[heads.dtype]
        forward, backward = (
            attention_time(flops, length, backward=b, dtype=dtype, device=device, head_dim=heads.width)
            for b in (False, True)
        )
        return forward - device.attention_forward.overhead, backward - device.attention_backward.overhead


def _around(length: int) -> tuple[int, int, float]:
    """The two lengths of the grid around this one, and how far it lies between them, in powers."""
    at = min(max(1, bisect_left(LENGTHS, length)), len(LENGTHS) - 1)
    low, high = LENGTHS[at - 1], LENGTHS[at]
    return low, high, log(length / low) / log(high / low)


def _between(first: float, second: float, share: float) -> float:
    return first + share * (second - first)
