"""The block kernel of each device: rectangles through the flash kernels that torch carries, the rest as the reference.

A CPU takes each full rectangle and causal square as one dense call. CUDA takes long ones so through cuDNN, and all
others of a kind in one packed FlashAttention call. A window's bands are written out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fourfold.backends.kernels import block_dense, block_packed
from fourfold.backends.kernels.attention_aten import FLASH_HEAD_DIM
from fourfold.backends.kernels.attention_cudnn import CUDNN_HEAD_DIM, WORTH_LENGTH
from fourfold.backends.kernels.block_packed import neighbours, taken
from fourfold.backends.kernels.block_reference import REFERENCE_BLOCK, empty, merge
from fourfold.ir.sequence.method import Block, Sums
from fourfold.ir.sequence.rectangles import Rectangle

WHOLE_TILES = 128
"""cuDNN builds a plan per shape: only rectangles of whole tiles go there, of which there are few."""


@dataclass(frozen=True, slots=True)
class Call:
    """Rectangles that one kernel call works on. how: "dense", "packed" or "written"."""

    how: str
    seen: tuple[Rectangle, ...]


Divide = Callable[[Tensor, tuple[Rectangle, ...]], Iterator[Call]]


@dataclass(frozen=True, slots=True)
class LibraryBlock:
    """Kernels of a library: `divide` says which call each rectangle goes to; `dense` are its dense kernels."""

    divide: Divide
    dense_forward: Callable[..., tuple[Tensor, Tensor]]
    dense_backward: Callable[..., tuple[Tensor, Tensor, Tensor]]
    takes_delta: bool = False

    def empty(self, q_THD: Tensor) -> Sums:
        """Sums over no key."""
        return empty(q_THD)

    def forward(self, sums: Sums, q_THD: Tensor, kv_2NGD: Tensor, seen: tuple[Rectangle, ...], scale: float) -> None:
        """Call by call, each merged into the sums."""
        for call in self.divide(q_THD, seen):
            if call.how == "written":
                REFERENCE_BLOCK.forward(sums, q_THD, kv_2NGD, call.seen, scale)
                continue
            spans = [(one.q_at, one.q_count) for one in call.seen]
            if call.how == "dense":
                one = call.seen[0]
                out, lse = self.dense_forward(_operands(q_THD, kv_2NGD, one), causal=one.square, scale=scale)
            else:
                out, lse = block_packed.forward(q_THD, kv_2NGD, call.seen, scale)
            for start, count, at in neighbours(spans):
                merge(sums, slice(start, start + count), out[at : at + count], lse[:, at : at + count])

    def backward(
        self,
        into: tuple[Tensor, Tensor],
        grad_THD: Tensor,
        q_THD: Tensor,
        kv_2NGD: Tensor,
        out: Tensor,
        lse_HT: Tensor,
        seen: tuple[Rectangle, ...],
        scale: float,
    ) -> None:
        """Call by call, each added to the gradients."""
        for call in self.divide(q_THD, seen):
            if call.how == "written":
                REFERENCE_BLOCK.backward(into, grad_THD, q_THD, kv_2NGD, out, lse_HT, call.seen, scale)
                continue
            if call.how == "dense":
                one = call.seen[0]
                rows = [(one.q_at, one.q_count)]
                grad, kept = taken(grad_THD, rows), taken(out, rows)
                found = self.dense_backward(
                    grad, _operands(q_THD, kv_2NGD, one), kept, _columns(lse_HT, one), causal=one.square, scale=scale
                )
            else:
                found = block_packed.backward(grad_THD, q_THD, kv_2NGD, out, lse_HT, call.seen, scale)
            _add(into, found, call.seen)


def block_for(q_THD: Tensor) -> Block:
    """The block kernel of a tensor's device and dtype."""
    if q_THD.device.type == "cpu":
        return CPU_BLOCK
    if q_THD.device.type == "cuda" and not torch.version.hip and _flash_takes(q_THD):
        return CUDA_BLOCK
    return REFERENCE_BLOCK


def _operands(q_THD: Tensor, kv_2NGD: Tensor, one: Rectangle) -> tuple[Tensor, Tensor, Tensor]:
    k, v = kv_2NGD.narrow(1, one.k_at, one.k_count)
    return q_THD.narrow(0, one.q_at, one.q_count), k, v


def _columns(lse_HT: Tensor, one: Rectangle) -> Tensor:
    return lse_HT.narrow(1, one.q_at, one.q_count)


def _add(into: tuple[Tensor, Tensor], found: tuple[Tensor, Tensor, Tensor], seen: Sequence[Rectangle]) -> None:
    dq_THD, dkv_2NGD = into
    for start, count, at in neighbours([(one.q_at, one.q_count) for one in seen]):
        dq_THD[start : start + count] += found[0][at : at + count]
    for start, count, at in neighbours([(one.k_at, one.k_count) for one in seen]):
        for total, part in zip(dkv_2NGD, found[1:], strict=True):
            total[start : start + count] += part[at : at + count]


def _one_by_one(q_THD: Tensor, seen: tuple[Rectangle, ...]) -> Iterator[Call]:
    for one in seen:
        yield Call("dense" if one.full or one.square else "written", (one,))


def _packed_and_dense(q_THD: Tensor, seen: tuple[Rectangle, ...]) -> Iterator[Call]:
    """Long rectangles alone, the short ones of each kind together, bands as they are."""
    short: dict[bool, list[Rectangle]] = {}
    for one in seen:
        if not one.full and not one.square:
            yield Call("written", (one,))
        elif _cudnn_takes(q_THD, one):
            yield Call("dense", (one,))
        else:
            short.setdefault(one.square, []).append(one)
    for found in short.values():
        yield Call("packed", tuple(found))


def _cudnn_takes(q_THD: Tensor, one: Rectangle) -> bool:
    return (
        min(one.q_count, one.k_count) >= WORTH_LENGTH
        and one.q_count % WHOLE_TILES == one.k_count % WHOLE_TILES == 0
        and q_THD.shape[2] <= CUDNN_HEAD_DIM
        and torch.cuda.get_device_capability(q_THD.device) >= (9, 0)
        and not torch.are_deterministic_algorithms_enabled()
    )


def _flash_takes(q_THD: Tensor) -> bool:
    return (
        q_THD.dtype in (torch.bfloat16, torch.float16)
        and q_THD.shape[2] % 8 == 0
        and q_THD.shape[2] <= FLASH_HEAD_DIM
        and torch.cuda.get_device_capability(q_THD.device) >= (8, 0)
    )


CPU_BLOCK = LibraryBlock(_one_by_one, block_dense.cpu_forward, block_dense.cpu_backward)
CUDA_BLOCK = LibraryBlock(_packed_and_dense, block_dense.cudnn_forward, block_dense.cudnn_backward)
