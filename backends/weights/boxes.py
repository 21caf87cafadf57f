"""Which elements of a whole tensor a rank keeps, as ranges: what is read from a file is not more than that."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard

from fourfold.ir.graph import Part


@dataclass(frozen=True, slots=True)
class Box:
    """A range (start, stop) of each dim."""

    ranges: tuple[tuple[int, int], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Elements along each dim."""
        return tuple(stop - start for start, stop in self.ranges)

    @property
    def slices(self) -> tuple[slice, ...]:
        """As an index."""
        return tuple(slice(*r) for r in self.ranges)

    def narrow(self, dim: int, start: int, length: int) -> Box:
        """As Tensor.narrow."""
        first = self.ranges[dim][0] + start
        return replace(self, ranges=(*self.ranges[:dim], (first, first + length), *self.ranges[dim + 1 :]))

    def chunk(self, count: int, dim: int, *, at: int) -> Box | None:
        """As Tensor.chunk(count, dim)[at]; None where there are fewer chunks."""
        size = self.shape[dim]
        each = -(-size // count)
        start = min(at * each, size)
        length = min(each, size - start)
        return self.narrow(dim, start, length) if length else None


def box_of(
    shape: tuple[int, ...], target: Tensor, *, part: Part | None, cut: Shard | Replicate | None, tp: tuple[int, int]
) -> Box | None:
    """What `target`, on this rank, holds of a tensor of this shape; None where it holds nothing.

    part: of a fused weight; cut: how it lies along the tensor axis, tp: (place, size) there. The rows left are then
    shared out over the pool.
    """
    box = Box(tuple((0, size) for size in shape))
    if part is not None:
        box = box.narrow(part.dim, part.start, part.stop - part.start)
    if isinstance(cut, Shard):
        place, size = tp
        box = box.chunk(size, cut.dim, at=place) or box.narrow(cut.dim, 0, 0)
    mesh = target.device_mesh if isinstance(target, DTensor) else None
    if mesh is None or "shard" not in (mesh.mesh_dim_names or ()) or mesh["shard"].size() == 1:
        return box
    if not shape:
        # One number is kept as a row of one: the first rank holds it.
        return box if mesh["shard"].get_local_rank() == 0 else None
    return box.chunk(mesh["shard"].size(), 0, at=mesh["shard"].get_local_rank())
