"""Seconds of an attention that a group of ranks shares, from what its method does: its recorded events on this machine.

The events are those of one document and scale with how many a micro-step holds. Compute goes on one clock, messages on
another, in the order the method issues them; a wait joins the two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from fourfold.costmodel.collective import collective_time
from fourfold.costmodel.kernel import attention_flops, attention_time, matmul_time, stream_time
from fourfold.hardware.machine import Crossing
from fourfold.hardware.topology import Machine
from fourfold.ir.mesh import Mesh
from fourfold.ir.plan import SIZES, Sharing
from fourfold.ir.record import Event, Ran, Sent
from fourfold.passes.sequence.routing import OWN_PORT, Routing
from fourfold.passes.sequence.tables import Heads, recording

RATES: Mapping[str, str] = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "float64": "fp64"}
"""The cost model's name of the unit that multiplies each dtype."""
MERGED = 12.0
"""Bytes an element that adding one block's output to the sums moves: two in, four in and out, and their gradient's."""

WRITING = "rsa"
"""The method that writes out the weights of whole rows, and multiplies with no kernel of a block."""


@dataclass(frozen=True)
class Shared:
    """A group of sp ranks on a machine, and how it shares."""

    machine: Machine
    mesh: Mesh
    sharing: Sharing
    routing: Routing = OWN_PORT

    @cached_property
    def crossing(self) -> Crossing:
        """What the whole group crosses."""
        return self.machine.crossing(self.mesh.group("sp"))

    @cached_property
    def ring(self) -> Crossing:
        """What a message to the next rank crosses, where every rank sends one."""
        return self.routing.routed(self.crossing)

    @cached_property
    def neighbours(self) -> Crossing:
        """What those that exchange heads cross."""
        u = self.sharing.ulysses
        return self.machine.crossing(self.mesh.group("sp")[: u if u > 1 else None])

    def seconds(self, heads: Heads, *, length: int, tokens: float, backward: bool) -> float:
        """One attention over `tokens` of the group in documents of `length`, on the rank that has most to do."""
        kind: Literal["forward", "backward"] = "backward" if backward else "forward"
        found = (recording(self.sharing, self.mesh.sp, heads, length, rank) for rank in self._ends)
        seconds = max(self._clock(one.of(kind), heads, tokens / length, length) for one in found)
        return seconds + self._written_out(heads, tokens, products=4 if backward else 2)

    def exposed(self, heads: Heads, *, length: int, tokens: float) -> float:
        """Seconds of forward and backward in which messages are waited for and nothing is computed."""
        return sum(
            self.seconds(heads, length=length, tokens=tokens, backward=b)
            - self.computed(heads, length=length, tokens=tokens, backward=b)
            for b in (False, True)
        )

    def computed(self, heads: Heads, *, length: int, tokens: float, backward: bool) -> float:
        """Seconds that one attention computes on the last rank; its messages take none."""
        events = self._events(heads, length, backward=backward)
        ran = sum(self._ran(e, heads, tokens / length, length) for e in events if isinstance(e, Ran))
        return ran + self._written_out(heads, tokens, products=4 if backward else 2)

    def travelled(self, heads: Heads, *, length: int, tokens: float, backward: bool) -> float:
        """Seconds of the messages of one attention, one after the other, on the last rank."""
        found: dict[int, list[Sent]] = {}
        for event in self._events(heads, length, backward=backward):
            if isinstance(event, Sent):
                found.setdefault(event.number, []).append(event)
        return sum(self._sent(sent, tokens / length) for sent in found.values())

    def _events(self, heads: Heads, length: int, *, backward: bool) -> Sequence[Event]:
        return recording(self.sharing, self.mesh.sp, heads, length, self.mesh.sp - 1).of(
            "backward" if backward else "forward"
        )

    def scratch(self, heads: Heads, tokens: int) -> float:
        """Bytes at most beside the operands: keys of others, and the sums of gradients in their dtype."""
        one = 2.0 * tokens * heads.kv_heads * heads.width
        copies = self.mesh.sp - 1 if self.sharing.method == "gather_kv" else 2
        sums = 4.0 * tokens * heads.heads * heads.width
        weights = tokens * float(tokens * self.mesh.sp) * heads.heads * (SIZES[heads.dtype] + 4.0)
        written = weights if self.sharing.method == WRITING else 0.0
        return one * copies * (SIZES[heads.dtype] + 4.0) + 2.0 * sums + written

    @property
    def _ends(self) -> tuple[int, ...]:
        """Ranks of which one has most to do: work goes up or down along the group, or is alike."""
        return (self.mesh.sp - 1,) if self.sharing.layout == "zigzag" else (0, self.mesh.sp - 1)

    def _written_out(self, heads: Heads, tokens: float, *, products: int) -> float:
        """Seconds of a method that multiplies by itself: this rank's queries with all keys of the micro-step, hidden
        pairs included, in float32; each product reads or writes the weights once."""
        if self.sharing.method != WRITING:
            return 0.0
        pairs = tokens * tokens / self.mesh.sp * heads.heads
        return products * matmul_time(2.0 * pairs * heads.width, 4.0 * pairs, "fp32", self.machine.device)

    def _clock(self, events: Sequence[Event], heads: Heads, many: float, length: int) -> float:
        now, queue = 0.0, 0.0
        ready: dict[int, float] = {}
        pending: dict[int, list[Sent]] = {}
        for event in events:
            if isinstance(event, Sent):
                pending.setdefault(event.number, []).append(event)
                continue
            for number, sent in pending.items():
                queue = max(queue, now) + self._sent(sent, many)
                ready[number] = queue
            pending.clear()
            if isinstance(event, Ran):
                now += self._ran(event, heads, many, length)
            else:
                now = max(now, ready.get(event.number, now))
        return max(now, queue) if pending else now

    def _sent(self, sent: Sequence[Sent], many: float) -> float:
        """Messages that leave together: a shift to one peer, or a collective of all."""
        size, name = many * sum(one.bytes for one in sent), sent[0].name
        known, links = self.machine.calibration, self.machine.group
        if len(sent) == 1 and name not in ("all_gather", "all_to_all", "reduce_scatter"):
            return collective_time("send_recv", size, self.ring, calibration=known, group=links)
        crossing = self.neighbours if name == "all_to_all" else self.crossing
        whole = size * crossing.size / max(1, crossing.size - 1)
        op: Literal["all_gather", "all_to_all"] = "all_gather" if name == "all_gather" else "all_to_all"
        return collective_time(op, whole, crossing, calibration=known, group=links)

    def _ran(self, event: Ran, heads: Heads, many: float, length: int) -> float:
        flops = attention_flops(event.heads, event.width, event.pairs) * many
        device, seen = self.machine.device, 2.0 * event.pairs / max(1, event.rows)
        backward = event.kind == "backward"
        merged = stream_time(MERGED * many * event.rows * event.heads * event.width, device)
        kernel = attention_time(
            flops, min(seen, length), backward=backward, dtype=RATES[heads.dtype], device=device, head_dim=event.width
        )
        return kernel + merged
