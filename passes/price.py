"""The price of a plan: the only place where graph, layout, machine and cost model meet in an Estimate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import ceil

from fourfold.costmodel.collective import collective_time
from fourfold.costmodel.kernel import peak_rate, stream_time
from fourfold.costmodel.memory import (
    Memory,
    activation_memory,
    attention_workspace,
    communicator_memory,
    library_workspace,
    logits_memory,
    peak,
    shard_elements,
)
from fourfold.costmodel.state import Held, Widths, backward_memory, shard_size, state_memory, update_memory
from fourfold.hardware.machine import Crossing, Overlap
from fourfold.hardware.topology import Machine
from fourfold.ir.answer import Estimate
from fourfold.ir.graph import Graph
from fourfold.ir.plan import SIZES, Plan
from fourfold.passes.seconds import RATES, Load, Seconds, Times
from fourfold.passes.steps import CallCost, step_time
from fourfold.passes.work import BlockWork, logits_width, model_flops, work

CHUNK = 2048
"""Tokens whose logits the fused loss holds at once (backends/engine.py)."""

CLIPPED = 12.0
"""Bytes a parameter that gradient clipping moves: one read for the norm, one read and write to scale."""


def load_of(plan: Plan) -> Load:
    """The fullest rank's micro-step: balanced tokens and pairs, never less than the longest sequence."""
    workload, share = plan.workload, plan.mesh.pool * plan.micro_steps
    tokens = max(workload.longest, ceil(workload.tokens / share))
    longest = workload.longest * (workload.longest + 1) / 2
    squares = sum(count * length * length for length, count in workload.lengths)
    return Load(rounded(tokens, plan.bucket), max(longest, workload.pairs / share), squares / workload.tokens)


def rounded(tokens: int, bucket: int) -> int:
    """`tokens` padded to whole buckets."""
    return -(-tokens // bucket) * bucket


@dataclass(frozen=True)
class Priced:
    """One plan with everything its price is made of; each part is worked out once."""

    plan: Plan
    machine: Machine
    blocks: Mapping[str, BlockWork] | None = None

    @cached_property
    def work(self) -> Mapping[str, BlockWork]:
        """The work of each block for one micro-step."""
        return self.blocks or work(self.plan.graph, self.plan.layouts, seconds_of(self.plan, self.machine))

    @cached_property
    def pool(self) -> Crossing:
        """What the pool of the first rank crosses."""
        return self.machine.crossing(self.plan.mesh.group("pool"))

    @property
    def overlap(self) -> Overlap:
        """How compute and collectives slow each other."""
        return self.machine.calibration.overlap if self.machine.calibration else Overlap()

    def collective(self, op: str, size: float) -> float:
        """One collective over the pool."""
        return collective_time(op, size, self.pool, calibration=self.machine.calibration, group=self.machine.group)  # type: ignore[arg-type]

    def calls(self) -> list[CallCost]:
        """The cost of every call in order."""
        precision, zero = self.plan.precision, self.plan.zero
        found = []
        for call, how in zip(self.plan.graph.calls, self._recompute(), strict=True):
            block = self.work[call.block]
            gathered = block.held * SIZES[precision.compute]
            reduced = block.trained * SIZES[precision.reduce]
            gather = self.collective("all_gather", gathered) if zero and gathered else 0.0
            reduce = self.collective("reduce_scatter" if zero else "all_reduce", reduced) if reduced else 0.0
            found.append(CallCost(block.total, block.tensor, block.replay(how), gather, reduce))
        return found

    def _recompute(self) -> tuple[str, ...]:
        return self.plan.recompute or ("none",) * len(self.plan.graph.calls)

    def optimizer_seconds(self) -> float:
        """Clipping and the update of this rank's shard: each number read and written once."""
        state = self.plan.optimizer.state
        size = self.held.trainable_shard * (3.0 * SIZES[self.plan.precision.parameter] + 2.0 * state + CLIPPED)
        return stream_time(size, self.machine.device) if size else 0.0

    @cached_property
    def held(self) -> Held:
        """Parameter elements of one rank by unit."""
        shard = shard_size(zero=self.plan.zero, pool=self.plan.mesh.pool)
        graph, counts = self.plan.graph, self.plan.graph.counts
        shared = _shared(graph)
        total = dict.fromkeys(("trained", "trained_shard", "frozen", "frozen_shard", "root", "root_trained"), 0)
        for name, block in self.work.items():
            for (shape, grad), parameter in zip(block.shapes, graph.blocks[name].parameters, strict=True):
                times = 0 if shared.get((name, parameter)) == "again" else counts[name]
                elements, kept = _product(shape) * times, shard_elements(shape, shard) * times
                kind = "trained" if grad else "frozen"
                total[kind] += elements
                total[f"{kind}_shard"] += kept
                if shared.get((name, parameter)):
                    total["root"] += elements
                    total["root_trained"] += elements if grad else 0
        return Held(
            trainable=total["trained"],
            trainable_shard=total["trained_shard"],
            block=max(b.held for b in self.work.values()),
            block_trainable=max(b.trained for b in self.work.values()),
            root=total["root"],
            root_trainable=total["root_trained"],
            frozen=total["frozen"],
            frozen_shard=total["frozen_shard"],
        )

    def memory(self) -> Memory:
        """The fullest moment of a step on one rank."""
        plan, precision = self.plan, self.plan.precision
        widths = Widths(SIZES[precision.parameter], SIZES[precision.compute], SIZES[precision.reduce], int(plan.optimizer.state))
        state = state_memory(self.held, widths, zero=plan.zero, pool=plan.mesh.pool, micro_steps=plan.micro_steps)
        communicators = communicator_memory((plan.mesh.pool > 1) + (plan.mesh.tp > 1), self.machine.device)
        modes = self._recompute()
        kept = [self.work[c.block].kept[how] for c, how in zip(plan.graph.calls, modes, strict=True)]
        again = [self.work[c.block].kept["none"] for c, how in zip(plan.graph.calls, modes, strict=True) if how != "none"]
        largest = max(b.kept["none"] for b in self.work.values())
        vocabulary, width, size = logits_width(plan.graph)
        share = plan.mesh.tp if vocabulary % plan.mesh.tp == 0 else 1
        gradient = 4.0 * vocabulary * width / share
        backward = backward_memory(
            state,
            activations=activation_memory(saved=sum(kept) + gradient, replayed=max(again, default=0.0), working=largest),
            logits=logits_memory(chunk=CHUNK, vocabulary=vocabulary // share, width=size),
            workspace=library_workspace(self.machine.device) + self._attention_workspace(),
            communicators=communicators,
        )
        return peak(backward, update_memory(state, communicators=communicators))

    def _attention_workspace(self):  # type: ignore[no-untyped-def]
        for block in self.plan.graph.blocks.values():
            for node in block.nodes:
                if node.op == "attention":
                    _, heads, _, width = block.value(node.refs()[0]).shape
                    kv_heads = block.value(node.refs()[1]).shape[1]
                    return attention_workspace(
                        tokens=load_of(self.plan).tokens, heads=heads, kv_heads=kv_heads, head_dim=width, width=SIZES[node.value.dtype]
                    ) * (1.0 / self.plan.mesh.tp)
        return library_workspace(self.machine.device) * 0.0

    def estimate(self) -> Estimate:
        """Time, memory and MFU of one step."""
        plan = self.plan
        step, exposed = step_time(
            self.calls(), zero=plan.zero, micro_steps=plan.micro_steps, optimizer=self.optimizer_seconds(), overlap=self.overlap
        )
        flops = model_flops(plan.graph, plan.workload.tokens, plan.workload.pairs)
        peak_flops = peak_rate(RATES[plan.precision.compute], self.machine.device) * plan.mesh.ranks
        device = self.machine.device
        return Estimate(
            step=step,
            parts=self._parts(step, exposed),
            memory={name: (band.low, band.high) for name, band in self.memory().parts() if band.high > 0},
            limit=device.usable - device.reserve,
            flops=flops,
            mfu=flops / step / peak_flops,
            tokens=plan.workload.tokens,
            ranks=plan.mesh.ranks,
        )

    def _parts(self, step: float, exposed: float) -> tuple[tuple[str, float], ...]:
        """Where the step's time goes; exposed communication is split between the tensor axis and the pool."""
        m, counts = self.plan.micro_steps, self.plan.graph.counts
        rows = []
        for kind in ("products", "attention", "loss", "elementwise"):
            times = [self.work[b].compute[kind] for b in self.plan.graph.blocks]
            rows.append((kind, m * sum(counts[b] * (t.forward + t.backward) for b, t in zip(self.plan.graph.blocks, times, strict=True))))
        replays = [self.work[c.block].replay(how) for c, how in zip(self.plan.graph.calls, self._recompute(), strict=True)]
        tensor = m * sum(counts[b] * (w.tensor.forward + w.tensor.backward) for b, w in self.work.items())
        tensor += m * sum(r.backward for r in replays)
        rows += [
            ("recompute", m * sum(r.forward for r in replays)),
            ("tensor communication", tensor),
            ("data communication", max(0.0, exposed - tensor)),
            ("optimizer", self.optimizer_seconds()),
        ]
        rest = step - sum(seconds for _, seconds in rows)
        return (*((name, s) for name, s in rows if s > 0), ("slowed by overlap", max(0.0, rest)))


def seconds_of(plan: Plan, machine: Machine) -> Seconds:
    """The prices of ops under a plan's tensor axis and load."""
    return Seconds(plan.graph, machine, machine.crossing(plan.mesh.group("tp")), load_of(plan))


def price(plan: Plan) -> Estimate:
    """The Estimate of a plan from its own profile snapshot: no model, no profile file is read."""
    return Priced(plan, Machine.from_snapshot(plan.machine)).estimate()




def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def _shared(graph: Graph) -> dict[tuple[str, str], str]:
    """Parameters that several calls read: counted once, held by the root's unit. "again" marks later readers."""
    first: dict[str, int] = {}
    found: dict[tuple[str, str], str] = {}
    for i, call in enumerate(graph.calls):
        for name in graph.blocks[call.block].parameters:
            full = call.fqn(name)
            if first.setdefault(full, i) != i:
                found[graph.calls[first[full]].block, name if name in graph.blocks[graph.calls[first[full]].block].parameters else name] = "first"
                found[call.block, name] = "again"
    return found
