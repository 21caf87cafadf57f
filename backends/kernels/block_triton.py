"""Our own block kernel: any rectangles, bands included, in one call a layer of spans that goes on from the sums.

Nothing is copied together, merged or cut in two: a row has its span of keys, and a tile visits only keys its rows see.
On a CPU it runs in Triton's interpreter, to be tested there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fourfold.backends.kernels.block_reference import empty
from fourfold.backends.kernels.block_spans import Layer, layers, stream_of
from fourfold.backends.kernels.block_tiles import Tile, Tiles, architecture_of, tiles_for
from fourfold.backends.kernels.block_triton_backward import delta_kernel, key_kernel, query_kernel
from fourfold.backends.kernels.block_triton_forward import forward_kernel
from fourfold.backends.kernels.block_triton_merge import mix
from fourfold.ir.sequence.method import Sums
from fourfold.ir.sequence.rectangles import Seen

DELTA_ROWS = 32


@dataclass(frozen=True, slots=True)
class TritonBlock:
    """Forward resumes the online softmax; backward takes two passes and no atomics. tiles: the device's own if None."""

    tiles: Tiles | None = None
    takes_delta: bool = True

    def empty(self, q_THD: Tensor) -> Sums:
        """Sums over no key."""
        return empty(q_THD)

    def forward(self, sums: Sums, q_THD: Tensor, kv_2NGD: Tensor, seen: Seen, scale: float) -> None:
        """One launch a layer of spans."""
        tiles = self._tiles(q_THD)
        heads = q_THD.shape[1]
        q, k, v = (x.contiguous() for x in (q_THD, *kv_2NGD))
        assert sums.out.is_contiguous() and sums.lse.is_contiguous()
        for layer in _layers(seen, q, k, tiles):
            tensors = (q, k, v, sums.out, sums.lse, layer.spans_2M, layer.forward)
            forward_kernel[(len(layer.forward), heads)](*tensors, *_counts(q, k), scale, **fixed(q, k, tiles.forward))

    def merge(self, sums: Sums, out_MHD: Tensor, lse_HM: Tensor) -> None:
        """One launch."""
        mix(sums.out, sums.lse, out_MHD, lse_HM)

    def backward(
        self,
        into: tuple[Tensor, Tensor],
        grad_THD: Tensor,
        q_THD: Tensor,
        kv_2NGD: Tensor,
        out: Tensor,
        lse_HT: Tensor,
        seen: Seen,
        scale: float,
    ) -> None:
        """Two launches a layer, and one for the delta unless `out` is it."""
        tiles = self._tiles(q_THD)
        grad, q, k, v, lse = (x.contiguous() for x in (grad_THD, q_THD, *kv_2NGD, lse_HT))
        delta = out.contiguous() if out.dim() == 2 else delta_of(grad, out)
        dq, (dk, dv) = into
        assert dq.is_contiguous() and dk.is_contiguous() and dv.is_contiguous()
        heads, groups = q.shape[1], k.shape[1]
        for layer in _layers(seen, q, k, tiles):
            given, counts = (q, k, v, grad, lse, delta), _counts(q, k)
            query_kernel[(len(layer.query), heads)](
                *given, dq, layer.spans_2M, layer.query, *counts, scale, **fixed(q, k, tiles.query)
            )
            key_kernel[(len(layer.key), groups)](
                *given, dk, dv, layer.spans_2M, layer.key, *counts, scale, **fixed(q, k, tiles.key)
            )

    def _tiles(self, q_THD: Tensor) -> Tiles:
        return self.tiles or tiles_for(architecture_of(q_THD.device), q_THD.dtype)


def delta_of(grad_THD: Tensor, out_THD: Tensor) -> Tensor:
    """rowsum(grad * out), float32 [H, T]."""
    rows, heads, width = grad_THD.shape
    found = torch.empty((heads, rows), dtype=torch.float32, device=grad_THD.device)
    sizes = {"HEADS": heads, "WIDTH": width, "PADDED": padded(width), "ROWS": DELTA_ROWS}
    if rows:
        delta_kernel[(-(-rows // DELTA_ROWS), heads)](grad_THD, out_THD.contiguous(), found, rows, **sizes)
    return found


def padded(width: int) -> int:
    """The head dimension as tiles hold it: a power of 2, and no less than a product takes."""
    return max(16, 1 << (width - 1).bit_length())


def _layers(seen: Seen, q: Tensor, k: Tensor, tiles: Tiles) -> tuple[Layer, ...]:
    counts, device = _counts(q, k), q.device
    name = (counts, tiles, device)
    return seen.once(name, lambda: layers(seen.rectangles, counts, tiles.sizes, device, stream_of(device)))


def _counts(q: Tensor, k: Tensor) -> tuple[int, int]:
    return q.shape[0], k.shape[0]


def fixed(q: Tensor, k: Tensor, tile: Tile, *, fresh: bool = False) -> Mapping[str, int]:
    """What a kernel is compiled for; `fresh` where its results are written, not added to."""
    heads, width = q.shape[1:]
    return {
        "HEADS": heads,
        "GROUPS": k.shape[1],
        "WIDTH": width,
        "PADDED": padded(width),
        "ROWS": tile.rows,
        "KEYS": tile.keys,
        "FRESH": fresh,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


TRITON_BLOCK = TritonBlock()
