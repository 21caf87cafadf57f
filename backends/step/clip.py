"""The global norm of gradients that are sharded over the pool and cut over tp, by one sum over all ranks."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def clip_grad_norm_(
    parameters: Iterable[nn.Parameter],
    limit: float,
    *,
    copies: frozenset[int] = frozenset(),
    device: torch.device | None = None,
) -> float:
    """The 2-norm of all gradients together; scales them in place so that it is at most `limit`.

    `copies` are ids of parameters that another rank counts: they are scaled alone. A rank may hold no gradient. A part
    that several ranks hold alike counts on the first of them. Parameters without a gradient count nothing.
    A norm that is not finite makes every gradient so, as torch's own clipping does.
    """
    held = [(p.grad, id(p) in copies) for p in parameters if p.grad is not None]
    local = [_local(g) for g, _ in held]
    counted = [x for (g, copy), x in zip(held, local, strict=True) if not copy and _counts_here(g)]
    norms = torch._foreach_norm(counted) if counted else ()
    # Squares are summed in float64: float32 parts of many ranks would lose what a small tensor adds.
    square = torch.zeros((), dtype=torch.float64, device=local[0].device if local else device)
    for norm in norms:
        square += norm.double().square()
    if dist.is_initialized():
        dist.all_reduce(square)
    total = square.sqrt()
    factor = torch.clamp(limit / (total + 1e-6), max=1.0)
    if local:
        torch._foreach_mul_(local, factor.to(local[0].dtype))
    return float(total)


def _local(grad: Tensor) -> Tensor:
    return grad.to_local() if isinstance(grad, DTensor) else grad


def _counts_here(grad: Tensor) -> bool:
    """Whether this rank is the first of those that hold this part."""
    if not isinstance(grad, DTensor):
        return not dist.is_initialized() or dist.get_rank() == 0
    place = grad.device_mesh.get_coordinate()
    assert place is not None
    assert not any(p.is_partial() for p in grad.placements), "a gradient was left in partial sums"
    return all(at == 0 or not p.is_replicate() for at, p in zip(place, grad.placements, strict=True))
