"""What a profile becomes once resolved: plain numbers in SI units that the cost model reads.

Bytes, bytes per second, FLOP per second, seconds. Nothing here knows TOML.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class KernelFit:
    """Efficiency of one kernel class: t = overhead + ((F / (compute P))^shape + (Q / (memory B))^shape)^(1/shape).

    Of an elementwise kernel, the first `cached` bytes go at `hot` B, as they stay in a cache.
    """

    compute: float
    memory: float
    shape: float
    overhead: float
    cached: float = 0.0
    hot: float = 1.0


@dataclass(frozen=True, slots=True)
class AttentionFit:
    """Share of the matmul peak at length s and head size d: ceiling s / (s + half_length) d / (d + half_width)."""

    ceiling: float
    half_length: float
    overhead: float
    half_width: float = 0.0


@dataclass(frozen=True, slots=True)
class Chore:
    """Work of the program between the kernels that nothing hides: `overhead` each time plus bytes / `rate`.

    A rate of 0 copies nothing; `idle` is what is left of the overhead where there is nothing to move.
    """

    overhead: float
    rate: float = 0.0
    idle: float = 0.0


@dataclass(frozen=True, slots=True)
class Device:
    """One accelerator (or one CPU worker): rates, memory and kernel efficiencies.

    `peak` maps a dtype name (fp64 fp32 tf32 fp16 bf16 fp8 fp4 int8) to its dense FLOP/s; an
    unsupported dtype is absent. `matmul` maps a dtype name, or "any", to its fit. `special` are exponentials and their
    like; it and `norm_backward` are None where they cost what other elementwise kernels do. `chores` by name: gather
    and reduce around a sharded unit in forward and backward, update for each tensor by clipping and optimizer, local
    for each parameter read under a tensor axis, move for each change of state along it, read for each sequence of the
    batch; absent where the device runs on meanwhile.
    """

    name: str
    vendor: str
    arch: str
    units: int
    peak: Mapping[str, float]
    usable: float
    reserve: float
    bandwidth: float
    l2: float
    collectives: str
    matmul: Mapping[str, KernelFit]
    stream: KernelFit
    norm: KernelFit
    attention_forward: AttentionFit
    attention_backward: AttentionFit
    launch: float
    special: KernelFit | None = None
    norm_backward: KernelFit | None = None
    chores: Mapping[str, Chore] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Path:
    """What one rank has towards the rest of its group, one direction, with every rank of the machine busy likewise.

    `small_limit` caps the rate of the low-latency protocol; `gain` multiplies the all-reduce rate where the
    switch reduces; `efficiency` is the share of the wire that large messages reach.
    """

    name: str
    bandwidth: float
    base: float
    step: float
    base_small: float
    step_small: float
    small_limit: float
    gain: float
    efficiency: float
    latency_small: float
    latency_large: float


@dataclass(frozen=True, slots=True)
class Crossing:
    """The links a group of ranks crosses: `size` ranks on `nodes` nodes, at most `per_node` on one of them."""

    size: int
    nodes: int
    per_node: int
    stride: int
    intra: Path | None
    inter: Path | None
    overlap: float


@dataclass(frozen=True, slots=True)
class Anchors:
    """Measured times of one collective on one kind of group: ascending (bytes, seconds) pairs."""

    op: str
    size: int
    nodes: int
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Overlap:
    """How much compute and a collective slow each other down when they run at once (1.0 = not at all)."""

    compute_slowdown: float = 1.0
    collective_slowdown: float = 1.0


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was measured on a machine; it overrides the profile's uncalibrated factors."""

    name: str
    anchors: tuple[Anchors, ...] = ()
    overlap: Overlap = field(default_factory=Overlap)
