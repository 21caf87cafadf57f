"""Bytes one rank holds at its fullest moment, by category, each as a lower and an upper bound.

The state is that of FSDP2 (torch.distributed.fsdp.fully_shard): master parameters sharded over the
pool, copies in the compute dtype gathered a unit at a time, gradients reduce-scattered into shards.
What each rank really holds is `Memory`; a plan fits when the upper bound does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields

from fourfold.hardware.machine import Device

GIB = float(2**30)

# The caching allocator rounds large blocks to 2 MiB and keeps a pool per stream that others cannot
# use: little is lost on what is allocated once, this share on what comes and goes in a step.
# Starting values, to be replaced by what runs measure.
SLACK_LOW = 0.02
SLACK_HIGH = 0.08

# Ring and tree buffers of one NCCL or RCCL communicator, all channels, made at its first collective.
COMMUNICATOR_LOW = 0.2 * GIB
COMMUNICATOR_HIGH = 0.6 * GIB

# One matrix-product workspace (32 MiB on Hopper) for the forward and one for the autograd thread;
# upper: as many again for a second stream, and the libraries' own kernels.
LIBRARY_LOW = 0.03 * GIB
LIBRARY_HIGH = 0.25 * GIB


@dataclass(frozen=True, slots=True)
class Band:
    """Bytes known to lie between `low` and `high`."""

    low: float = 0.0
    high: float = 0.0

    def __post_init__(self) -> None:
        assert 0 <= self.low <= self.high, f"a band runs upwards from 0: {self.low} to {self.high}"

    def __add__(self, other: Band) -> Band:
        return Band(self.low + other.low, self.high + other.high)

    def __mul__(self, factor: float) -> Band:
        return Band(self.low * factor, self.high * factor)

    def __str__(self) -> str:
        low, high = f"{self.low / GIB:.2f}", f"{self.high / GIB:.2f}"
        return f"{high} GiB" if low == high else f"{low}-{high} GiB"


NOTHING = Band()


def exactly(size: float) -> Band:
    """A band of no width: bytes that follow from shapes alone."""
    return Band(size, size)


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one rank at one moment, by category."""

    parameters: Band = NOTHING
    gradients: Band = NOTHING
    optimizer: Band = NOTHING
    activations: Band = NOTHING
    logits: Band = NOTHING
    workspace: Band = NOTHING
    communicators: Band = NOTHING
    slack: Band = NOTHING

    def parts(self) -> Iterator[tuple[str, Band]]:
        """(category, band) in the order of the fields."""
        for category in fields(self):
            yield category.name, getattr(self, category.name)

    @property
    def total(self) -> Band:
        return sum((band for _, band in self.parts()), NOTHING)

    def fits(self, device: Device) -> bool:
        """Whether even the upper bound lies within what the device leaves to a program."""
        return self.shortfall(device) <= 0

    def shortfall(self, device: Device) -> float:
        """Bytes by which the upper bound exceeds `usable - reserve` of the device; negative is room left."""
        return self.total.high - (device.usable - device.reserve)

    def __str__(self) -> str:
        lines = [f"{name:<14}{band!s:>20}" for name, band in self.parts() if band.high > 0]
        return "\n".join([*lines, f"{'total':<14}{self.total!s:>20}"])


def peak(first: Memory, *others: Memory) -> Memory:
    """The moment of a step with the largest upper bound."""
    return max((first, *others), key=lambda moment: moment.total.high)


def library_workspace(device: Device) -> Band:
    """Scratch space of the matrix-product libraries; none on a CPU."""
    return NOTHING if device.vendor == "cpu" else Band(LIBRARY_LOW, LIBRARY_HIGH)


def attention_workspace(*, tokens: int, heads: int, kv_heads: int, head_dim: int, width: int) -> Band:
    """Scratch space of one attention backward on a GPU, over the tokens and heads of this rank.

    FlashAttention sums dQ in fp32 (4 bytes x tokens x heads x head_dim) and, when several query
    heads share a key head, first forms dK and dV for every query head (2 x width bytes an element).
    Lower bound: a kernel that needs neither.
    """
    queries = float(tokens * heads * head_dim)
    expanded = 2.0 * width * queries if kv_heads < heads else 0.0
    return Band(0.0, 4.0 * queries + expanded)


def communicator_memory(count: int, device: Device) -> Band:
    """Buffers of `count` communicators: 0.2 to 0.6 GiB each for NCCL and RCCL, nothing for gloo."""
    if device.collectives not in ("nccl", "rccl"):
        return NOTHING
    return Band(COMMUNICATOR_LOW, COMMUNICATOR_HIGH) * count


def activation_memory(*, saved: float, replayed: float = 0.0, working: float = 0.0, in_flight: int = 1) -> Band:
    """Bytes kept from forward to backward, at the moment the deepest micro-step starts its backward.

    `saved` is what one micro-step keeps, the boundaries of recomputed blocks included; `in_flight`
    how many micro-steps are kept at once; `replayed` what the largest recomputed block brings back;
    `working` what lives only inside one block (upper bound only): the gradients beside the values
    they belong to, as large as the largest block's values unless better is known.
    """
    kept = saved * in_flight + replayed
    return Band(kept, kept + working)


def logits_memory(*, chunk: int, vocabulary: int, width: int) -> Band:
    """Bytes of the fused linear + cross-entropy on `chunk` tokens and this rank's part of the vocabulary.

    Lower bound: the chunk's logits in fp32. Upper: beside them the product in the compute dtype
    (`width` bytes) and the gradient in fp32.
    """
    scores = float(chunk * vocabulary)
    return Band(4.0 * scores, (8.0 + width) * scores)


def allocator_slack(dynamic: Band) -> Band:
    """What the caching allocator loses on memory that comes and goes within a step."""
    return Band(SLACK_LOW * dynamic.low, SLACK_HIGH * dynamic.high)


def shard_elements(shape: tuple[int, ...], shard: int) -> int:
    """Elements of one parameter that a rank stores when `shard` ranks cut its first dimension.

    The cut is by rows and padded: ceil(rows / shard) rows each, so 8 rows on 6 ranks take 2 each.
    """
    if not shape:
        return 1
    return math.ceil(shape[0] / shard) * math.prod(shape[1:])
