"""Seconds one collective takes on the links its group of ranks crosses.

Measured anchors where a calibration has them, else two straight lines (one for the low-latency
protocol, one for the bandwidth protocol) of which the faster wins.

`size` is in bytes, one convention everywhere (nccl-tests): all_reduce = one rank's buffer,
all_gather = the gathered result, reduce_scatter = the whole input of a rank, all_to_all = one
rank's whole send buffer, broadcast and send_recv = the message.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from fourfold.hardware.machine import Anchors, Calibration, Crossing, Path

Op = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "send_recv"]
OPS: tuple[Op, ...] = get_args(Op)

# The low-latency protocol sends a flag with every word: it never gets past this share of the wire.
SMALL_SHARE = 0.4


@dataclass(frozen=True, slots=True)
class _Work:
    """What an op asks of one set of links: bytes one rank puts on the wire, and dependent steps."""

    volume: float
    steps: int


@dataclass(frozen=True, slots=True)
class _Line:
    """One protocol on one link: base + steps x step + volume / rate."""

    base: float
    step: float
    rate: float


def collective_time(
    op: Op,
    size: float,
    crossing: Crossing,
    *,
    calibration: Calibration | None = None,
    group: Callable[[int, int], Crossing] | None = None,
) -> float:
    """Seconds of `op` on `size` bytes (convention above) over the ranks and links of `crossing`.

    In order: the anchors measured for this op, group size and node count; the anchors of the nearest
    measured group of the same op, each rescaled by model(this group) / model(that group); the model.
    `group(size, nodes)` returns the links of a measured group, for that rescaling. Without it the
    links of `crossing` stand in, which is wrong where the rate depends on the size of the group (a
    full mesh, a switch that reduces only for large groups).
    One rank, or no bytes, takes no time. Never falls as `size` grows.
    Source: of five forms fitted to published nccl-tests runs, log-log anchors erred least (1 to 4 %
    mean) and two lines came next (3 to 7 %); one line a + S/B errs by 9 to 20 %.
    """
    assert op in OPS, op
    assert size >= 0 and crossing.size >= 1, (size, crossing.size)
    if crossing.size == 1 or size == 0:
        return 0.0
    measured = nearest_anchors(op, crossing, calibration)
    if measured is None:
        return model_time(op, size, crossing)
    if (measured.size, measured.nodes) == (crossing.size, crossing.nodes):
        return interpolate(measured.points, size)
    links = group(measured.size, measured.nodes) if group else _stand_in(measured, crossing)
    if links.per_node > 1 and links.intra is None:
        # Measured with links inside the nodes, of which one device a node uses none.
        return model_time(op, size, crossing)
    return interpolate(
        [(at, seconds * model_time(op, at, crossing) / model_time(op, at, links)) for at, seconds in measured.points],
        size,
    )


def bus_factor(op: Op, ranks: int) -> float:
    """Bytes one rank puts on the wire per byte of `size`: the nccl-tests factor busbw = factor x size / time."""
    if op == "all_reduce":
        return 2.0 * (ranks - 1) / ranks
    if op in ("broadcast", "send_recv"):
        return 1.0
    return (ranks - 1) / ranks


def model_time(op: Op, size: float, crossing: Crossing) -> float:
    """Seconds by the uncalibrated two-line model, for at least two ranks.

    small = latency_small (base_small + steps x step_small) + V / min(small_limit, 0.4 B)
    large = latency_large (base + steps x step)             + V / (efficiency B gain)
    and the smaller wins; V and steps are those of a ring (2 (n - 1) for all-reduce, n - 1 else),
    `gain` applies to an all-reduce within one switch. Over nodes both links carry their part
    (hierarchical), latencies add and the shorter part hides under the longer by `overlap`:
    T = latency + max + (1 - overlap) min.
    Mean error 7 to 17 % over 32 KiB to 16 GiB on three published 8-GPU machines.
    """
    if op == "send_recv":
        return _one_link(_Work(size, 1), _between(crossing), gain=1.0)
    if crossing.nodes == 1:
        links = _within(crossing)
        gain = links.gain if op == "all_reduce" else 1.0
        return _one_link(_Work(size * bus_factor(op, crossing.size), _steps(op, crossing.size)), links, gain=gain)
    inner, outer = _hierarchy(op, size, crossing)
    if inner.steps == 0:
        return _one_link(outer, _across(crossing), gain=1.0)
    return _two_links(op, crossing, inner=inner, outer=outer)


def nearest_anchors(op: Op, crossing: Crossing, calibration: Calibration | None) -> Anchors | None:
    """The measured group closest to `crossing` for `op`, or None.

    A group inside one node is never compared with one across nodes: other links, other protocol.
    """
    if calibration is None:
        return None
    alike = [
        anchors
        for anchors in calibration.anchors
        if anchors.op == op and anchors.points and (anchors.nodes == 1) == (crossing.nodes == 1)
    ]
    return min(alike, key=lambda anchors: _distance(anchors, crossing), default=None)


def interpolate(points: Sequence[tuple[float, float]], size: float) -> float:
    """Seconds at `size` bytes from ascending (bytes, seconds) points.

    Straight in log-log between points, flat below the first, constant bandwidth above the last. A
    time below that of a smaller message is noise of the measurement: it is raised to it.
    """
    assert points, "no points"
    left_size, left = points[0]
    if size <= left_size:
        return left
    for right_size, seconds in points[1:]:
        right = max(seconds, left)
        if size <= right_size:
            share = math.log(size / left_size) / math.log(right_size / left_size)
            return float(left * (right / left) ** share)
        left_size, left = right_size, right
    return left * size / left_size


def _distance(anchors: Anchors, crossing: Crossing) -> tuple[float, float, int, int]:
    size = abs(math.log(anchors.size / crossing.size))
    nodes = abs(math.log(anchors.nodes / crossing.nodes))
    return (size + nodes, nodes, anchors.size, anchors.nodes)


def _stand_in(measured: Anchors, crossing: Crossing) -> Crossing:
    """A group of the measured size on the links of `crossing`."""
    per_node = math.ceil(measured.size / measured.nodes)
    return replace(crossing, size=measured.size, nodes=measured.nodes, per_node=per_node)


def _steps(op: Op, ranks: int) -> int:
    return 2 * (ranks - 1) if op == "all_reduce" else ranks - 1


def _hierarchy(op: Op, size: float, crossing: Crossing) -> tuple[_Work, _Work]:
    """What the links inside the nodes and those between them carry, for a group over several nodes.

    All-to-all sends 1/n of its buffer to each rank; the others reduce or gather inside the node,
    so that each rank takes its g-th share over its own network card.
    """
    nodes, inside = crossing.nodes, crossing.per_node
    average = crossing.size / nodes
    inner_steps, outer_steps = (_steps(op, inside), _steps(op, nodes))
    if op == "all_to_all":
        near = size * (inside - 1) / crossing.size
        far = size * (crossing.size - average) / crossing.size
        return _Work(near, inner_steps), _Work(far, outer_steps)
    near = size * bus_factor(op, inside) if inside > 1 else 0.0
    far = size * bus_factor(op, nodes) / average
    return _Work(near, inner_steps), _Work(far, outer_steps)


def _one_link(work: _Work, path: Path, *, gain: float) -> float:
    return min(
        line.base + work.steps * line.step + work.volume / line.rate for line in (_small(path), _large(path, gain=gain))
    )


def _two_links(op: Op, crossing: Crossing, *, inner: _Work, outer: _Work) -> float:
    """The two-line model over both links. One launch pays one base: the larger of the two."""
    within, across = _within(crossing), _across(crossing)
    # Every pair of an all-to-all sends on its own: the two parts run side by side.
    exposed = 0.0 if op == "all_to_all" else 1.0 - crossing.overlap
    times = []
    for near, far in ((_small(within), _small(across)), (_large(within), _large(across))):
        latency = max(near.base, far.base) + inner.steps * near.step + outer.steps * far.step
        parts = (inner.volume / near.rate, outer.volume / far.rate)
        times.append(latency + max(parts) + exposed * min(parts))
    return min(times)


def _small(path: Path) -> _Line:
    rate = min(path.small_limit, SMALL_SHARE * path.bandwidth)
    return _Line(path.latency_small * path.base_small, path.latency_small * path.step_small, rate)


def _large(path: Path, *, gain: float = 1.0) -> _Line:
    rate = path.efficiency * path.bandwidth * gain
    return _Line(path.latency_large * path.base, path.latency_large * path.step, rate)


def _within(crossing: Crossing) -> Path:
    assert crossing.intra is not None, f"{crossing.size} ranks share a node but have no link inside it"
    return crossing.intra


def _across(crossing: Crossing) -> Path:
    assert crossing.inter is not None, f"{crossing.size} ranks on {crossing.nodes} nodes have no link between nodes"
    return crossing.inter


def _between(crossing: Crossing) -> Path:
    """The slowest kind of link that a message or a ring shift of this group meets."""
    return _within(crossing) if crossing.nodes == 1 else _across(crossing)
