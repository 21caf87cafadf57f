"""Small talk between the ranks that waits for no kernel in flight: on a GPU it has a stream of its own.

A step exchanges a digest before its forward and the loss after it. On the stream of the model each of them would let
the device run dry: the host would wait for the optimizer of the step before, or for the whole backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Aside:
    """The device, and the stream small tensors take; None on the CPU."""

    device: torch.device
    stream: torch.cuda.Stream | None

    @classmethod
    def of(cls, device: torch.device) -> Aside:
        """With a stream of its own where the device has streams."""
        return cls(device, torch.cuda.Stream(device) if device.type == "cuda" else None)  # type: ignore[no-untyped-call]

    @classmethod
    def here(cls) -> Aside:
        """For the process group that is joined: on this process's GPU where it speaks through NCCL."""
        name = "cuda" if dist.get_backend() == "nccl" else "cpu"
        return cls.of(torch.device(name, torch.cuda.current_device()) if name == "cuda" else torch.device(name))

    @property
    def rank(self) -> int:
        """This process among all."""
        return dist.get_rank()

    def told(self, text: bytes | None) -> bytes:
        """What rank 0 passed, on every rank; the others pass None. Two messages: how long it is, and it."""
        with self._open():
            size = moved(torch.tensor([len(text or b"")]), self.device)
            dist.broadcast(size, src=0)
            given = bytearray(text or int(size))
            box = moved(torch.frombuffer(given, dtype=torch.uint8) if given else torch.empty(0), self.device)
            dist.broadcast(box, src=0)
            return box.cpu().numpy().tobytes()

    def gathered(self, numbers: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """The numbers every rank passed, in order of rank; as many on each."""
        with self._open():
            mine = moved(torch.tensor(numbers, dtype=torch.int64), self.device)
            rows = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
            dist.all_gather(rows, mine)
            return tuple(tuple(int(v) for v in row) for row in torch.stack(rows).tolist())

    def sum(self, value: Tensor) -> Tensor:
        """The sum of a number over all ranks, on its way: after what made it, beside what is launched later."""
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with self._open():
            total = value.clone()
            dist.all_reduce(total)
            return total

    def read(self, total: Tensor) -> float:
        """A number that `sum` gave."""
        with self._open():
            return float(total)

    def _open(self) -> AbstractContextManager[object]:
        return nullcontext() if self.stream is None else torch.cuda.stream(self.stream)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A host tensor on the device; the host does not wait, which takes pinned memory."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
