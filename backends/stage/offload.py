"""What the forward of one micro-step keeps for its backward, a planned share of it in the host's memory.

Hooks of autograd see each tensor that is saved, by compiled regions and checkpoints too. Whole storages go, one by one
as they come, whenever fewer bytes than the share have gone so far: nothing on the device is copied, views of one
storage stay together, and the share is met to within half a storage. They come back in reverse. A layer saves much at
once, so that copies keep up with compute only if as much as one layer moves may be on its way out, and back ahead of
its use.
Source: ByteScale's activation offload (arXiv 2502.21231, section 5), which cuts each tensor at the share instead.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from fourfold.backends.kernels.attention import Hooks
from fourfold.backends.stage.host import Away, Host
from fourfold.ir.batch import RESIDENT, spare

Resident = Callable[[], Iterable[Tensor]]
"""Tensors that are on the device whether or not they are saved: parameters, the tokens of the micro-step."""


@dataclass(frozen=True, slots=True)
class _There:
    """A saved tensor that stays, and its version: autograd does not compare versions of what hooks return."""

    tensor: Tensor
    version: int


@dataclass(frozen=True, slots=True)
class _View:
    """A saved tensor whose storage is away."""

    away: Away
    dtype: torch.dtype
    offset: Any
    size: torch.Size
    stride: tuple[int, ...]


class Offloading:
    """One forward of a stage: which of what its calls save goes.

    layers: calls that hold a layer each, of which the first stay, as does all that other calls save. Bytes of storages,
    each counted once, parameters not: `kept` by layers, `open` by those that do not stay, and `moved`, of which `each`
    layer's.
    """

    def __init__(self, host: Host, layers: Sequence[int], share: float) -> None:
        self.host, self.layers = host, frozenset(layers)
        self.goes = frozenset(layers[RESIDENT:])
        self.ratio = min(1.0, share / spare(len(layers))) if self.goes else 0.0
        self.kept = self.open = self.moved = 0
        self.known: dict[int, tuple[StorageWeakRef, weakref.ref[Away] | None]] = {}
        self.order: list[weakref.ref[Away]] = []
        self.coming: list[weakref.ref[Away]] = []
        self.each: Counter[int] = Counter()

    def hooks(self, call: int, resident: Resident) -> Hooks:
        """How autograd saves what one call keeps, and gets it back."""
        return _Call(self, call, resident).pack, self.unpack

    def unpack(self, packed: Any) -> Tensor:
        """What was saved; begins to bring back what was saved before it."""
        if isinstance(packed, _There):
            assert packed.tensor._version == packed.version, "a saved tensor was changed in place"
            self._ahead()
            return packed.tensor
        assert isinstance(packed, _View)
        self.coming = [ref for ref in self.coming if ref() is not packed.away]
        storage = packed.away.storage()
        self._ahead()
        empty = torch.empty(0, dtype=packed.dtype, device=self.host.device)
        return empty.set_(storage, packed.offset, packed.size, packed.stride)

    def away(self, x: Tensor, call: int, resident: frozenset[int]) -> Away | None:
        """Where the storage of a saved tensor goes; None if it stays. The same for whoever saves it.

        Versions would not tell more: autograd refuses what is written to between two saves, and counts those of a
        node's own results anew.
        """
        storage = StorageWeakRef(x.untyped_storage())  # type: ignore[no-untyped-call]
        known = self.known.get(storage.cdata)
        if known is not None:
            found = None if known[1] is None else known[1]()
            if known[1] is None or found is not None:
                return found
        found = self._decided(x, call, resident)
        # As long as the weak reference is held no other storage gets this number.
        self.known[storage.cdata] = storage, None if found is None else weakref.ref(found)
        return found

    def _decided(self, x: Tensor, call: int, resident: frozenset[int]) -> Away | None:
        storage = x.untyped_storage()
        size = storage.nbytes()
        if storage.data_ptr() in resident:
            return None
        self.kept += size if call in self.layers else 0
        self.open += size if call in self.goes else 0
        if call not in self.goes or size < self.host.least or self.moved + size / 2 > self.ratio * self.open:
            return None
        self.moved += size
        self.each[call] += size
        found = Away(self.host, x)
        self.host.left(found, self.window)
        self.order.append(weakref.ref(found))
        return found

    @property
    def window(self) -> int:
        """Bytes of the layer that moves most, so far."""
        return max(self.each.values(), default=0)

    def _ahead(self) -> None:
        """Fetches the last ones that are still away, until as much as a layer moves waits to be asked for."""
        waiting = sum(one.size for ref in self.coming if (one := ref()) is not None)
        while self.order and waiting < self.window:
            last = self.order.pop()
            found = last()
            if found is not None and found.fetch():
                self.coming.append(last)
                waiting += found.size


@dataclass(frozen=True)
class _Call:
    """One call of the graph as it saves tensors."""

    offloading: Offloading
    index: int
    resident: Resident

    def pack(self, x: Tensor) -> _There | _View:
        """In place of what is saved."""
        plain = type(x) is Tensor and x.device.type == self.offloading.host.device.type and x.layout is torch.strided
        away = self.offloading.away(x, self.index, self._resident) if plain else None
        if away is None:
            return _There(x, x._version)
        return _View(away, x.dtype, x.storage_offset(), x.size(), x.stride())

    @cached_property
    def _resident(self) -> frozenset[int]:
        """Addresses of the storages that are there anyway, while the call runs."""
        with torch.no_grad():
            return frozenset(tensor.untyped_storage().data_ptr() for tensor in self.resident())
