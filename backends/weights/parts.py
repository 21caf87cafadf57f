"""Which part of a whole tensor a rank holds, read from a parameter's own placements."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor


@dataclass(frozen=True, slots=True)
class Place:
    """A rank's place on the axes of a parameter's mesh, and which of them cut it."""

    at: tuple[int, ...]
    cut: tuple[bool, ...]

    @property
    def replica(self) -> tuple[int, ...]:
        """The same for ranks whose parts make one whole."""
        return tuple(at for at, cut in zip(self.at, self.cut, strict=True) if not cut)


def place_of(parameter: Tensor) -> Place:
    """Where this rank stands among those that hold `parameter`."""
    if not isinstance(parameter, DTensor):
        return Place((), ())
    at = parameter.device_mesh.get_coordinate()
    assert at is not None
    return Place(tuple(at), tuple(p.is_shard() or not p.is_replicate() for p in parameter.placements))


def local(value: Tensor) -> Tensor:
    """This rank's part itself."""
    found: Tensor = value.to_local() if isinstance(value, DTensor) else value
    return found


def part_of(parameter: Tensor, whole: Tensor) -> Tensor:
    """The part of `whole` that this rank's part of `parameter` is: the innermost axis cuts first, in equal chunks."""
    if not isinstance(parameter, DTensor):
        return whole
    mesh = parameter.device_mesh
    # A parameter of one number is kept as a row of one.
    whole = whole if whole.dim() else whole.reshape(1)
    for axis in reversed(range(mesh.ndim)):
        placement: Any = parameter.placements[axis]
        if placement.is_replicate():
            continue
        chunks = whole.chunk(mesh.size(axis), placement.dim)
        at = mesh.get_local_rank(axis)
        whole = chunks[at] if at < len(chunks) else whole.narrow(placement.dim, 0, 0)
    return whole
