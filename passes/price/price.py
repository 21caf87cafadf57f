"""The price of a plan: the only place where graph, layout, machine and cost model meet in an Estimate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

from fourfold.costmodel.collective import Op, collective_time
from fourfold.costmodel.kernel import chore_time, idle_time, peak_rate
from fourfold.costmodel.memory import SLACK_HIGH, Memory
from fourfold.hardware.machine import Crossing, Overlap
from fourfold.hardware.topology import Machine
from fourfold.ir.answer import Estimate
from fourfold.ir.graph import Source
from fourfold.ir.mesh import Mesh
from fourfold.ir.plan import RECOMPUTE, SIZES, Plan
from fourfold.ir.stages import calls_of, stages, state_of, value_of
from fourfold.passes.price.copies import copies_of
from fourfold.passes.price.flops import model_flops
from fourfold.passes.price.in_flight import in_flight, owed
from fourfold.passes.price.laid import LaidGraph, size_of
from fourfold.passes.price.line import Line
from fourfold.passes.price.load import load_of
from fourfold.passes.price.pipelined import StageCost, busiest, neighbours, pipelined, stage_costs
from fourfold.passes.price.seconds import Seconds, Times
from fourfold.passes.price.steps import CallCost, StepTime, floor, queued, step_time
from fourfold.passes.price.work import ELEMENTWISE, KINDS, BlockWork, work
from fourfold.passes.sequence.shared import RATES, Shared

EXCHANGES = 3
"""What all ranks tell each other in a step: a digest of the batch, the loss, the norm of the gradients."""


@dataclass(frozen=True)
class Priced:
    """One plan with everything its price is made of; each part is worked out once."""

    plan: Plan
    machine: Machine
    laid: LaidGraph
    work: Mapping[str, BlockWork]
    known: dict[tuple[object, ...], CallCost] = field(default_factory=dict, repr=False)
    """Costs of calls by block, recompute mode, ZeRO stage and pool, for this work: plans that differ in nothing else
    share them."""

    pools: dict[Mesh, Crossing] = field(default_factory=dict, repr=False)

    @cached_property
    def modes(self) -> tuple[str, ...]:
        """The recompute mode of every call."""
        return self.plan.recompute or (RECOMPUTE[0],) * len(self.plan.graph.calls)

    @cached_property
    def pool(self) -> Crossing:
        """What the pool of the first rank crosses."""
        mesh = self.plan.mesh
        if mesh not in self.pools:
            self.pools[mesh] = self.machine.crossing(mesh.group("pool"))
        return self.pools[mesh]

    @property
    def overlap(self) -> Overlap:
        """How compute and collectives slow each other."""
        return self.machine.calibration.overlap if self.machine.calibration else Overlap()

    @cached_property
    def calls(self) -> tuple[CallCost, ...]:
        """The cost of every call in order."""
        pairs = list(zip(self._blocks(), self.modes, strict=True))
        found = {pair: self._known_call(*pair) for pair in dict.fromkeys(pairs)}
        return tuple(found[pair] for pair in pairs)

    def _known_call(self, name: str, mode: str) -> CallCost:
        key = (name, mode, self.plan.zero, self.pool, self.plan.micro_steps > 1)
        if key not in self.known:
            self.known[key] = self._call(name, mode)
        return self.known[key]

    @cached_property
    def lines(self) -> tuple[Line, ...]:
        """Each place in a line of stages: without stages there is one."""
        found = []
        for place in range(self.plan.mesh.pp):
            calls = calls_of(self.plan.graph, self.plan, place)
            kept, late = in_flight(self.plan, place), owed(self.plan, place)
            found.append(Line(self.plan, self.machine.device, self.laid, self.work, calls, kept, late))
        return tuple(found)

    @property
    def staged(self) -> bool:
        """Whether the stages are known: before, the whole graph stands for one."""
        return self.plan.mesh.pp == 1 or bool(self.plan.bounds)

    @cached_property
    def optimizer(self) -> float:
        """Seconds of clipping and update on the rank that holds most."""
        return max(line.optimizer for line in self.lines) if self.staged else 0.0

    @cached_property
    def stages(self) -> tuple[StageCost, ...]:
        """Each pipeline stage."""
        return stage_costs(self.plan, self.calls, self.overlap)

    @cached_property
    def send(self) -> float:
        """Seconds in which a micro-step's activations go from one stage to the next."""
        found = stages(self.plan.graph, self.plan.bounds)
        sizes = [sum(self._crossing_bytes(source) for source in stage.gives) for stage in found[:-1]]
        links = self.machine.crossing(neighbours(self.plan.mesh, self.machine))
        known, group = self.machine.calibration, self.machine.group
        return collective_time("send_recv", max(sizes, default=0.0), links, calibration=known, group=group)

    def _crossing_bytes(self, source: Source) -> float:
        value, state = value_of(self.plan.graph, source), state_of(self.plan, self.plan.graph, source)
        return size_of(value, load_of(self.plan).tokens) / (self.plan.mesh.tp if state.kind == "S" else 1)

    @cached_property
    def talk(self) -> float:
        """Seconds in which every rank reads the batch and tells the others a few numbers, where that is waited for."""
        read = self.plan.workload.sequences * chore_time("read", self.machine.device)
        if not self.blocking:
            return read
        everyone = self.machine.crossing(tuple(range(self.plan.mesh.ranks)))
        known, group = self.machine.calibration, self.machine.group
        return read + EXCHANGES * collective_time("all_reduce", 8.0, everyone, calibration=known, group=group)

    @property
    def blocking(self) -> bool:
        """Whether a collective holds up the program that starts it."""
        return self.machine.device.collectives == "gloo"

    @cached_property
    def floor(self) -> float:
        """Seconds that the step cannot go below, whatever overlaps: cheap, and what the search prunes by."""
        steps = self.plan.micro_steps
        if self.plan.mesh.pp > 1:
            return self.talk + self._floor_of_stages()
        seconds = floor(self.calls, micro_steps=steps, optimizer=self.optimizer + self.talk)
        return seconds if self.plan.recompute else seconds + steps * self._line_replay(self.lines[0])

    @cached_property
    def close_floor(self) -> float:
        """The same with what goes over the pool: closer, and worth its time where all plans are looked at."""
        plan, last = self.plan, self.optimizer + self.talk
        if plan.mesh.pp == 1:
            return max(self.floor, last + queued(self.calls, zero=plan.zero, micro_steps=plan.micro_steps))
        return max(self.floor, last + busiest(plan, self.stages, self.send)) if plan.bounds else self.floor

    def _floor_of_stages(self) -> float:
        """A rank runs each micro-step through its stages; around that the stages ahead of it must run once."""
        steps, pp = self.plan.micro_steps, self.plan.mesh.pp
        paths = [call.path for call in self.calls]
        if not self.plan.bounds:
            return steps * sum(paths) / pp
        cuts = (0, *self.plan.bounds, len(paths))
        each = [sum(paths[a:b]) for a, b in pairwise(cuts)]
        ranks = (steps * sum(each[place::pp]) + sum(each[:place]) for place in range(pp))
        return self.optimizer + max(ranks)

    def _line_replay(self, line: Line) -> float:
        """Seconds a micro-step that some recompute must take where nothing recomputed does not fit.

        Each byte too many is given back by the mode that gives back most for its time; the allocator's slack goes
        with it.
        """
        short = line.memory().shortfall(self.machine.device) / (1.0 + SLACK_HIGH)
        if short <= 0:
            return 0.0
        rates = []
        for name in line.counts:
            block = self.work[name]
            for mode in RECOMPUTE[1:]:
                freed, again = block.kept["none"] - block.kept[mode], block.replay(mode)
                rates += [(again.compute + again.communication) / freed] if freed > 0 else []
        return short * min(rates, default=0.0)

    @cached_property
    def fullest(self) -> Line:
        """The place that holds most."""
        return max(self.lines, key=lambda line: line.memory().total.high)

    def memory(self) -> Memory:
        """The fullest moment of a step on the fullest rank."""
        return self.fullest.memory()

    def estimate(self) -> Estimate:
        """Time, memory and MFU of one step."""
        plan, device, step = self.plan, self.machine.device, self.step
        flops = model_flops(plan.graph, plan.workload)
        peak_flops = peak_rate(RATES[plan.precision.compute], device) * plan.mesh.ranks
        return Estimate(
            step=step.seconds,
            parts=tuple((name, seconds) for name, seconds in self._parts(step) if seconds > 0),
            memory={name: (band.low, band.high) for name, band in self.memory().parts() if band.high > 0},
            limit=device.usable - device.reserve,
            flops=flops,
            mfu=flops / step.seconds / peak_flops,
            tokens=plan.workload.tokens,
            ranks=plan.mesh.ranks,
        )

    @cached_property
    def step(self) -> StepTime:
        """The time of one step."""
        plan, last = self.plan, self.optimizer + self.talk
        if plan.mesh.pp > 1:
            return pipelined(plan, self.stages, send=self.send, optimizer=last)
        return step_time(
            self.calls,
            zero=plan.zero,
            micro_steps=plan.micro_steps,
            optimizer=last,
            overlap=self.overlap,
            blocking=self.blocking,
        )

    def _parts(self, step: StepTime) -> Iterator[tuple[str, float]]:
        """Where the step's time goes on the busiest rank: they sum to it. What is exposed beside the tensor axis is
        the pool's; what is left of a pipeline's step is its bubble."""
        times = self.plan.micro_steps
        line = max(self.lines, key=lambda one: sum(self.calls[i].path for i in one.calls))
        blocks = [self.plan.graph.calls[i].block for i in line.calls]
        around = [self._around(block) for block in blocks]
        idle = self.talk + times * sum(each.forward + each.backward for each in around)
        computed = self.optimizer + idle
        for kind in (*KINDS.values(), ELEMENTWISE):
            done = [self.work[block].compute[kind] for block in blocks]
            seconds = times * sum(t.forward + t.backward for t in done)
            computed += seconds
            yield kind, seconds
        replayed = times * sum(self.calls[i].replay.compute for i in line.calls)
        tensor = [self.calls[i].tensor.forward + self.calls[i].tensor.backward for i in line.calls]
        again = [self.calls[i].replay.communication for i in line.calls]
        crossing = times * (sum(tensor) + sum(again))
        copied = sum(self.calls[i].copies.of_step(times, again=i != line.calls[-1]) for i in line.calls)
        yield "recompute", replayed
        yield "copies", copied
        yield "tensor communication", crossing
        yield "optimizer", self.optimizer
        yield "program", idle
        if self.plan.mesh.pp > 1:
            yield "data communication", step.exposed
            yield "bubble", step.seconds - computed - replayed - copied - crossing - step.exposed
            return
        yield "data communication", step.exposed - crossing
        yield "slowed by overlap", step.computing - computed - replayed - copied

    def _blocks(self) -> Iterator[str]:
        return (call.block for call in self.plan.graph.calls)

    def _call(self, name: str, mode: str) -> CallCost:
        precision, zero = self.plan.precision, self.plan.zero
        laid, block = self.laid.blocks[name], self.work[name]
        gathered, reduced = laid.held * SIZES[precision.compute], laid.trained * SIZES[precision.reduce]
        gather = self._collective("all_gather", gathered) if zero and gathered else 0.0
        reduce = self._collective("reduce_scatter" if zero else "all_reduce", reduced) if reduced else 0.0
        device = self.machine.device
        if gathered:
            gather += chore_time("gather", device, gathered) - idle_time("gather", device)
        if reduced:
            reduce += chore_time("reduce", device, reduced) - idle_time("reduce", device)
        copies = copies_of(laid, self.plan, device)
        around, own = self._around(name), (block.tensor, block.replay(mode), gather, reduce, copies)
        return CallCost(block.total + around, *own, late=block.late.seconds, around=around.forward + around.backward)

    def _around(self, name: str) -> Times:
        """What the program does around each call of a block, whether or not anything is gathered or reduced."""
        device, cut = self.machine.device, self.plan.mesh.tp > 1
        local = len(self.plan.graph.blocks[name].parameters) * chore_time("local", device) / 2 if cut else 0.0
        return Times(idle_time("gather", device) + local, idle_time("reduce", device) + local)

    def _collective(self, op: Op, size: float) -> float:
        """One collective over the pool."""
        calibration = self.machine.calibration
        return collective_time(op, size, self.pool, calibration=calibration, group=self.machine.group)


def seconds_of(plan: Plan, machine: Machine) -> Seconds:
    """The prices of ops under a plan's tensor axis and load."""
    shared = Shared(machine, plan.mesh, plan.sharing) if plan.mesh.sp > 1 else None
    return Seconds(plan.graph, machine, machine.crossing(plan.mesh.group("tp")), load_of(plan), shared)


def priced(plan: Plan, machine: Machine) -> Priced:
    """A plan with the parts of its price."""
    seconds = seconds_of(plan, machine)
    laid = LaidGraph(plan.graph, plan.layouts, plan.mesh.tp)
    return Priced(plan, machine, laid, {name: work(one, seconds) for name, one in laid.blocks.items()})


def price(plan: Plan) -> Estimate:
    """The Estimate of a plan from its own profile snapshot: no model, no profile file is read."""
    return priced(plan, Machine.from_snapshot(plan.machine)).estimate()
