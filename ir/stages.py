"""A graph in stages: consecutive calls, and the values that cross from each stage to the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fourfold.ir.graph import Graph, Source, Tensor
from fourfold.ir.plan import Layout, Plan
from fourfold.ir.rule import State


@dataclass(frozen=True, slots=True)
class Stage:
    """Calls [first, stop) of a graph. `takes` are values of earlier calls that it or a later stage reads, `gives` those
    that cross to the next stage: made here, or passed on. The last stage gives the loss."""

    number: int
    first: int
    stop: int
    takes: tuple[Source, ...]
    gives: tuple[Source, ...]

    @property
    def calls(self) -> range:
        """The calls of this stage."""
        return range(self.first, self.stop)


def stages(graph: Graph, bounds: Sequence[int]) -> tuple[Stage, ...]:
    """One stage more than `bounds`, the calls at which a stage after the first begins."""
    cuts = (0, *bounds, len(graph.calls))
    read = _last_reads(graph)
    crossing = [tuple(s for s, last in read.items() if s.call < at <= last) for at in cuts[:-1]]
    gives = (*crossing[1:], (Source(len(graph.calls) - 1, 0),))
    return tuple(Stage(k, cuts[k], cuts[k + 1], crossing[k], gives[k]) for k in range(len(cuts) - 1))


def calls_of(graph: Graph, plan: Plan, place: int) -> tuple[int, ...]:
    """The calls of one rank of a line of stages: stages go round the ranks."""
    cuts = (0, *plan.bounds, len(graph.calls))
    own = range(place, len(cuts) - 1, plan.mesh.pp)
    return tuple(i for k in own for i in range(cuts[k], cuts[k + 1]))


def part(graph: Graph, calls: Sequence[int]) -> Graph:
    """The graph of some of its calls alone: what one rank owns. Sources still count all calls."""
    return replace(graph, calls=tuple(graph.calls[i] for i in calls))


def value_of(graph: Graph, source: Source) -> Tensor:
    """Shape and dtype of what a call makes."""
    block = graph.blocks[graph.calls[source.call].block]
    return block.value(block.outputs[source.output])


def state_of(plan: Plan, graph: Graph, source: Source) -> State:
    """How a value lies on the tensor axis between calls."""
    block = graph.blocks[graph.calls[source.call].block]
    layout = plan.layouts.get(block.name, Layout())
    return State.parse(layout.states.get(block.outputs[source.output], "R"))


def shared_parameters(graph: Graph, found: Sequence[Stage]) -> dict[str, tuple[int, ...]]:
    """Parameters that calls of several stages read, by name, with those stages: each holds a copy."""
    where: dict[str, dict[int, None]] = {}
    for stage in found:
        for index in stage.calls:
            call = graph.calls[index]
            for name in graph.blocks[call.block].parameters:
                where.setdefault(call.fqn(name), {})[stage.number] = None
    return {name: tuple(numbers) for name, numbers in where.items() if len(numbers) > 1}


def _last_reads(graph: Graph) -> dict[Source, int]:
    """The last call that reads each value of another, in order of making."""
    found: dict[Source, int] = {}
    for index, call in enumerate(graph.calls):
        found |= {source: index for source in call.sources if source.call >= 0}
    return dict(sorted(found.items(), key=lambda pair: (pair[0].call, pair[0].output)))
