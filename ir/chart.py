"""What ran when: bars on the streams of ranks, predicted or measured; and the same for a viewer of traces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

COMPUTE = "compute"
"""The stream whose gaps are bubbles; what runs on any other is communication."""


@dataclass(frozen=True, slots=True)
class Look:
    """How a kind of bar is drawn: a letter, what the letter stands for, a colour."""

    letter: str
    words: str
    colour: str


KINDS: Mapping[str, Look] = {
    "F": Look("F", "forward", "#4c78a8"),
    "N": Look("N", "forward of what is dropped", "#4c78a8"),
    "B": Look("B", "backward", "#f58518"),
    "I": Look("I", "backward for inputs", "#f58518"),
    "W": Look("W", "backward for weights", "#b279a2"),
    "optimizer": Look("O", "optimizer", "#54a24b"),
    "compute": Look("#", "compute kernels", "#4c78a8"),
    "copy": Look("c", "copy", "#bab0ac"),
    "tensor": Look("t", "tensor communication", "#e45756"),
    "gather": Look("g", "gather", "#72b7b2"),
    "reduce": Look("r", "reduce", "#eeca3b"),
    "exchange": Look("x", "all to all", "#ff9da6"),
    "send": Look("s", "send", "#9d755d"),
}


@dataclass(frozen=True, slots=True)
class Bar:
    """Something that ran on one stream of one rank from `start` to `stop`, in seconds.

    `kind` is one of its chart's looks. `turn` counts the pipeline stages of the rank that come before the one it
    belongs to.
    """

    rank: int
    stream: str
    name: str
    start: float
    stop: float
    kind: str
    turn: int = 0
    micro_step: int = 0


@dataclass(frozen=True, slots=True)
class Chart:
    """The bars of a step that takes `seconds`; `ranks` are the names of those drawn, in order.

    `looks`: by kind of bar, in the order in which they are explained.
    """

    title: str
    bars: tuple[Bar, ...]
    seconds: float
    ranks: Mapping[int, str] = field(default_factory=dict)
    looks: Mapping[str, Look] = field(default_factory=lambda: KINDS)

    def lanes(self) -> Iterator[tuple[int, str, tuple[Bar, ...]]]:
        """Rank, stream and bars in order of time; the compute stream of each rank first."""
        found: dict[tuple[int, str], list[Bar]] = {}
        for bar in self.bars:
            found.setdefault((bar.rank, bar.stream), []).append(bar)
        for rank in self.ranks:
            streams = [stream for other, stream in found if other == rank]
            for stream in sorted(streams, key=lambda name: name.split()[0] != COMPUTE):
                yield rank, stream, tuple(sorted(found[rank, stream], key=lambda bar: bar.start))

    def exposed(self, rank: int) -> float:
        """Seconds in which a rank communicates and computes nothing."""
        own = [bar for bar in self.bars if bar.rank == rank]
        return covered(own) - covered([bar for bar in own if computes(bar)])


def shown(charts: Sequence[Chart]) -> tuple[Look, ...]:
    """How the kinds that occur are drawn, each once."""
    kinds = {bar.kind for chart in charts for bar in chart.bars}
    return tuple(dict.fromkeys(look for chart in charts for kind, look in chart.looks.items() if kind in kinds))


def computes(bar: Bar) -> bool:
    """Whether a bar is work of the rank itself."""
    return bar.stream.split()[0] == COMPUTE


def covered(bars: Sequence[Bar]) -> float:
    """Seconds in which at least one of the bars runs."""
    total, until = 0.0, float("-inf")
    for bar in sorted(bars, key=lambda one: one.start):
        total += max(0.0, bar.stop - max(bar.start, until))
        until = max(until, bar.stop)
    return total


def trace(charts: Sequence[Chart]) -> Mapping[str, object]:
    """The charts as Chrome's trace events, which Perfetto opens: a process a rank, a thread a stream; microseconds."""
    events: list[Mapping[str, object]] = []
    processes: dict[tuple[str, int], int] = {}
    threads: dict[tuple[int, str], int] = {}
    for chart in charts:
        for rank, stream, bars in chart.lanes():
            process = processes.setdefault((chart.title, rank), len(processes))
            if (process, "") not in threads:
                threads[process, ""] = 0
                events.append(_named("process", process, 0, f"{chart.title} {chart.ranks[rank]}"))
            thread = threads[process, stream] = sum(known == process for known, _ in threads)
            events.append(_named("thread", process, thread, stream))
            events += [_event(bar, process, thread) for bar in bars]
    return {"displayTimeUnit": "ms", "traceEvents": events}


def _named(what: str, process: int, thread: int, name: str) -> Mapping[str, object]:
    return {"ph": "M", "name": f"{what}_name", "pid": process, "tid": thread, "args": {"name": name}}


def _event(bar: Bar, process: int, thread: int) -> Mapping[str, object]:
    begin, length = bar.start * 1e6, (bar.stop - bar.start) * 1e6
    told = {"kind": bar.kind, "micro_step": bar.micro_step}
    place = {"pid": process, "tid": thread, "ts": begin, "dur": length}
    return {"ph": "X", "name": bar.name, "cat": bar.kind, **place, "args": told}
