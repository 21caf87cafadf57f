"""Tries an op that no table knows on small random tensors: does a token's result depend on that token alone?"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fourfold.backends.lowering.emit import Local, emit
from fourfold.ir.graph import TOKENS, Node, Tensor

COUNT = 7
LIMIT = 2**22
"""Elements of one tensor the probe is willing to make."""


def is_tokenwise(node: Node, values: Mapping[str, Tensor]) -> bool | None:
    """Whether op(tokens picked and reordered) == op(tokens) picked and reordered; None when it cannot be tried.

    Picking tells apart what looks at neighbours, at the whole sequence, or at a token's place.
    """
    tensors = [values[name] for name in dict.fromkeys(node.refs())]
    shapes = [*(t.shape for t in tensors), node.value.shape]
    if any(size < TOKENS for shape in shapes for size in shape) or node.value.shape.count(TOKENS) > 1:
        return None
    if any(torch.Size(abs(d) for d in shape).numel() * COUNT > LIMIT for shape in shapes):
        return None
    generator = torch.Generator().manual_seed(0)
    picked = torch.tensor([4, 1, 6, 2])
    try:
        run = _function(node)
        inputs = [_random(t, generator) for t in tensors]
        whole, again = run(*inputs), run(*inputs)
        few = run(*(_pick(x, t, picked) for x, t in zip(inputs, tensors, strict=True)))
        wanted = _pick(whole, node.value, picked)
        return _equal(whole, again) and few.shape == wanted.shape and _equal(few, wanted)
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, NotImplementedError):
        return None


def _function(node: Node) -> torch.fx.GraphModule:
    graph = torch.fx.Graph()
    names = dict.fromkeys(node.refs())
    env = {name: graph.placeholder(f"x{i}") for i, name in enumerate(names)}
    env["device"] = torch.device("cpu")  # type: ignore[assignment]
    graph.output(emit(graph, node, env, Local(node.value.shape, None, 0, 1)))
    return torch.fx.GraphModule(torch.nn.Module(), graph)


def _random(value: Tensor, generator: torch.Generator) -> torch.Tensor:
    shape = [COUNT if size < 0 else size for size in value.shape]
    kind: torch.dtype = getattr(torch, value.dtype)
    if kind.is_floating_point:
        return torch.rand(shape, generator=generator, dtype=torch.float64).to(kind)
    return torch.randint(0, 2, shape, generator=generator).to(kind)


def _pick(x: torch.Tensor, value: Tensor, picked: torch.Tensor) -> torch.Tensor:
    return x.index_select(value.shape.index(TOKENS), picked) if TOKENS in value.shape else x


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a.double(), b.double(), rtol=1e-3, atol=1e-3, equal_nan=True)
