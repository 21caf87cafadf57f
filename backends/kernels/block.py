"""The block kernel of each device: BLOCKS is the catalogue, in order of preference.

A CPU takes each full rectangle and causal square as one dense call. CUDA takes long ones so through cuDNN, and all
others together in one call of our own kernel, which on an H200 took 0.72 of the time of packed FlashAttention and less
than a tenth of that of cuDNN's calls one by one (benchmarks/block_kernels.py); so does everything where no library
kernel runs: float32, ROCm. Heads that are too wide for ours go to FlashAttention packed, and their bands are written
out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fourfold.backends.kernels import block_dense, block_packed
from fourfold.backends.kernels.attention_aten import FLASH_HEAD_DIM
from fourfold.backends.kernels.attention_cudnn import CUDNN_HEAD_DIM, WORTH_LENGTH, step
from fourfold.backends.kernels.block_packed import neighbours
from fourfold.backends.kernels.block_reference import REFERENCE_BLOCK, empty, mix
from fourfold.backends.kernels.block_tiles import WIDEST
from fourfold.ir.sequence.method import Block, Sums
from fourfold.ir.sequence.rectangles import Rectangle, Seen

LONG = 4096
"""Tokens from which a call of cuDNN's own costs less than it gains over our kernel's."""


@dataclass(frozen=True, slots=True)
class Call:
    """Rectangles that one kernel call works on. how: "dense", "packed" or "rest"."""

    how: str
    seen: Seen


Divide = Callable[[Tensor, Seen], Iterator[Call]]
Mix = Callable[[Tensor, Tensor, Tensor, Tensor], None]
"""Adds, in place, to out and lse of some rows those over other keys."""


@dataclass(frozen=True, slots=True)
class LibraryBlock:
    """Kernels of a library: `divide` says which call each rectangle goes to; `dense` are its dense kernels.

    rest: the block of what no kernel of the library runs; mix: how two attentions become one.
    """

    divide: Divide
    dense_forward: Callable[..., tuple[Tensor, Tensor]]
    dense_backward: Callable[..., tuple[Tensor, Tensor, Tensor]]
    rest: Block = REFERENCE_BLOCK
    mix: Mix = mix
    takes_delta: bool = False

    def empty(self, q_THD: Tensor) -> Sums:
        """Sums over no key."""
        return empty(q_THD)

    def forward(self, sums: Sums, q_THD: Tensor, kv_2NGD: Tensor, seen: Seen, scale: float) -> None:
        """Call by call, each merged into the sums."""
        for call in self._calls(q_THD, seen):
            if call.how == "rest":
                self.rest.forward(sums, q_THD, kv_2NGD, call.seen, scale)
                continue
            spans = [(one.q_at, one.q_count) for one in call.seen]
            if call.how == "dense":
                out, lse = self.dense_forward(q_THD, kv_2NGD, call.seen[0], scale=scale)
            else:
                out, lse = block_packed.forward(q_THD, kv_2NGD, call.seen.rectangles, scale)
            for start, count, at in neighbours(spans):
                rows, found = slice(start, start + count), slice(at, at + count)
                self.mix(sums.out[rows], sums.lse[:, rows], out[found], lse[:, found])

    def merge(self, sums: Sums, out_MHD: Tensor, lse_HM: Tensor) -> None:
        """Adds an attention of the same rows over other keys."""
        self.mix(sums.out, sums.lse, out_MHD, lse_HM)

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
        """Call by call, each added to the gradients."""
        for call in self._calls(q_THD, seen):
            if call.how == "rest":
                self.rest.backward(into, grad_THD, q_THD, kv_2NGD, out, lse_HT, call.seen, scale)
                continue
            if call.how == "dense":
                found = self.dense_backward(grad_THD, q_THD, kv_2NGD, out, lse_HT, call.seen[0], scale=scale)
            else:
                found = block_packed.backward(grad_THD, q_THD, kv_2NGD, out, lse_HT, call.seen.rectangles, scale)
            _add(into, found, call.seen)

    def _calls(self, q_THD: Tensor, seen: Seen) -> tuple[Call, ...]:
        """As `divide` says, for the queries of every layer."""
        name = (self.divide, q_THD.shape[2], q_THD.device, torch.are_deterministic_algorithms_enabled())
        return seen.once(name, lambda: tuple(self.divide(q_THD, seen)))


@dataclass(frozen=True, slots=True)
class Offer:
    """One block kernel of the catalogue: which queries it takes, and how to get it, which may load Triton."""

    name: str
    claims: Callable[[Tensor], bool]
    block: Callable[[], Block]


def block_for(q_THD: Tensor) -> Block:
    """The block kernel of a tensor's device, dtype and head dimension: the first of BLOCKS that claims them."""
    return next(offer for offer in BLOCKS if offer.claims(q_THD)).block()


@functools.cache
def _ours() -> Block:
    # Triton is loaded where a GPU will use it: a CPU has no need of it, and not every system has it.
    from fourfold.backends.kernels.block_triton import TRITON_BLOCK

    return TRITON_BLOCK


@functools.cache
def _library(ours: bool) -> Block:
    """The libraries of CUDA, with our own kernel beside cuDNN where it takes the heads, and merges by Triton."""
    from fourfold.backends.kernels import block_triton_merge

    rest, divide = (_ours(), _ours_and_dense) if ours else (REFERENCE_BLOCK, _packed_and_dense)
    return LibraryBlock(divide, block_dense.cudnn_forward, block_dense.cudnn_backward, rest, block_triton_merge.mix)


def _add(into: tuple[Tensor, Tensor], found: tuple[Tensor, Tensor, Tensor], seen: Seen) -> None:
    dq_THD, dkv_2NGD = into
    for start, count, at in neighbours([(one.q_at, one.q_count) for one in seen]):
        dq_THD[start : start + count] += found[0][at : at + count]
    for start, count, at in neighbours([(one.k_at, one.k_count) for one in seen]):
        for total, part in zip(dkv_2NGD, found[1:], strict=True):
            total[start : start + count] += part[at : at + count]


def _one_by_one(q_THD: Tensor, seen: Seen) -> Iterator[Call]:
    for one in seen:
        yield Call("dense" if one.full or one.square else "rest", Seen((one,)))


def _ours_and_dense(q_THD: Tensor, seen: Seen) -> Iterator[Call]:
    """Long rectangles alone, all others together."""
    alone, others = _apart(q_THD, seen, LONG)
    if others:
        yield Call("rest", Seen(others))
    yield from (Call("dense", Seen((one,))) for one in alone)


def _packed_and_dense(q_THD: Tensor, seen: Seen) -> Iterator[Call]:
    """Long rectangles alone, the short ones of each kind together, all bands together."""
    alone, others = _apart(q_THD, seen, WORTH_LENGTH)
    bands = tuple(one for one in others if not one.full and not one.square)
    if bands:
        yield Call("rest", Seen(bands))
    yield from (Call("dense", Seen((one,))) for one in alone)
    for square in (False, True):
        found = tuple(one for one in others if (one.square if square else one.full))
        if found:
            yield Call("packed", Seen(found))


def _apart(q_THD: Tensor, seen: Seen, least: int) -> tuple[tuple[Rectangle, ...], tuple[Rectangle, ...]]:
    """Rectangles for cuDNN, of at least so many rows and keys, and what is left."""
    if not _cudnn_takes(q_THD):
        return (), tuple(seen)
    alone: list[Rectangle] = []
    others: list[Rectangle] = []
    for one in seen:
        if one.square and one.q_count >= least:
            alone.append(one)
        elif one.full and min(one.q_count, one.k_count) >= least:
            alone.append(_stepped(one))
            others += _beyond(one, alone[-1].k_count)
        else:
            others.append(one)
    return tuple(alone), tuple(others)


def _stepped(one: Rectangle) -> Rectangle:
    """A full rectangle without its last keys: cuDNN builds a plan per shape, and would see keys that are padding."""
    return replace(one, k_count=one.k_count - one.k_count % step(one.k_count))


def _beyond(one: Rectangle, keys: int) -> list[Rectangle]:
    """A full rectangle without its first keys."""
    left = one.k_count - keys
    return [replace(one, k_at=one.k_at + keys, k_count=left)] if left else []


def _cudnn_takes(q_THD: Tensor) -> bool:
    return (
        q_THD.shape[2] <= CUDNN_HEAD_DIM
        and torch.cuda.get_device_capability(q_THD.device) >= (9, 0)
        and not torch.are_deterministic_algorithms_enabled()
    )


def _cpu_takes(q_THD: Tensor) -> bool:
    return q_THD.device.type == "cpu"


def _flash_takes(q_THD: Tensor) -> bool:
    return (
        q_THD.device.type == "cuda"
        and not torch.version.hip
        and q_THD.dtype in (torch.bfloat16, torch.float16)
        and q_THD.shape[2] % 8 == 0
        and q_THD.shape[2] <= FLASH_HEAD_DIM
        and torch.cuda.get_device_capability(q_THD.device) >= (8, 0)
    )


def _ours_takes(q_THD: Tensor) -> bool:
    """Our own kernel, on any GPU: every layout and window, in 16 bits and float32."""
    return (
        q_THD.device.type == "cuda"
        and q_THD.dtype in (torch.bfloat16, torch.float16, torch.float32)
        and q_THD.shape[2] <= WIDEST
        and (torch.version.hip is not None or torch.cuda.get_device_capability(q_THD.device) >= (8, 0))
    )


def _both_take(q_THD: Tensor) -> bool:
    return _flash_takes(q_THD) and _ours_takes(q_THD)


CPU_BLOCK = LibraryBlock(_one_by_one, block_dense.cpu_forward, block_dense.cpu_backward)
BLOCKS: tuple[Offer, ...] = (
    Offer("cpu", _cpu_takes, lambda: CPU_BLOCK),
    Offer("cudnn and triton", _both_take, lambda: _library(True)),
    Offer("cudnn and flash", _flash_takes, lambda: _library(False)),
    Offer("triton", _ours_takes, _ours),
    Offer("written out", lambda q_THD: True, lambda: REFERENCE_BLOCK),
)
