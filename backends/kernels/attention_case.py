"""What an attention kernel is: the softmax it computes, the case it is asked about, the four functions it offers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fourfold.backends.kernels.documents import Documents


@dataclass(frozen=True, slots=True)
class Softmax:
    """How scores become weights: p = softmax(scale * q k) over the visible keys of the query's own document.

    causal: key j is visible to query i only if j <= i; window: only if j > i - window (so a window of 1 sees only
    itself under `causal`), None for no bound. Positions count from the start of the document.
    """

    scale: float
    causal: bool
    window: int | None


@dataclass(frozen=True, slots=True)
class Case:
    """Everything a kernel may look at to say whether it can run a call, and whether it should.

    device: "cpu", "cuda" or "rocm"; capability: (major, minor) of a CUDA device, (0, 0) elsewhere; lengths: tokens of
    each document; deterministic: the caller asked torch for deterministic algorithms.
    """

    device: str
    capability: tuple[int, int]
    dtype: torch.dtype
    heads: int
    kv_heads: int
    head_dim: int
    lengths: tuple[int, ...]
    softmax: Softmax
    deterministic: bool


Gradients = tuple[Tensor, Tensor, Tensor]
Forward = Callable[[Tensor, Tensor, Tensor, Documents, Softmax], tuple[Tensor, Tensor]]
Backward = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Documents, Softmax], Gradients]


@dataclass(frozen=True, slots=True)
class Kernel:
    """One way to compute packed attention.

    claims: can it run this case at all; suits: is it worth running there (the first claimant that suits is taken);
    forward: (q, k, v, documents, softmax) -> (out [T, H, D], lse [H, T]), natural log, float32 (float64 for float64);
    backward: (grad_out, q, k, v, out, lse, documents, softmax) -> (dq, dk, dv), which takes the global out and lse and
    never runs the forward again.
    """

    name: str
    claims: Callable[[Case], bool]
    suits: Callable[[Case], bool]
    forward: Forward
    backward: Backward


def case_of(q_THD: Tensor, k_TGD: Tensor, documents: Documents, softmax: Softmax) -> Case:
    """The case of one call."""
    kind = q_THD.device.type
    capability = (0, 0)
    if kind == "cuda":
        kind = "rocm" if torch.version.hip else "cuda"
        capability = torch.cuda.get_device_capability(q_THD.device)
    return Case(
        device=kind,
        capability=capability,
        dtype=q_THD.dtype,
        heads=q_THD.shape[1],
        kv_heads=k_TGD.shape[1],
        head_dim=q_THD.shape[2],
        lengths=documents.lengths,
        softmax=softmax,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )
