"""One of our nodes as a torch call on local tensors: shapes literal in the node are those of this rank's part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fourfold.backends.lowering.late import linear
from fourfold.ir.graph import TOKENS, Arg, Node, Ref
from fourfold.ir.rule import State


@dataclass(frozen=True, slots=True)
class Local:
    """What a call needs beside its arguments: the result's local shape, and this rank's place on the cut axis."""

    shape: tuple[int, ...]
    cut: State | None
    rank: int
    size: int


def local_shape(shape: tuple[int, ...], state: State, size: int) -> tuple[int, ...]:
    """`shape` as one of `size` ranks holds it; the token dim stays symbolic."""
    if state.kind != "S":
        return shape
    return tuple(d // size if i == state.dim and d != TOKENS else d for i, d in enumerate(shape))


def rows(weight: Tensor, ids: Tensor, start: int, *, partial: bool) -> Tensor:
    """Rows of a table; of a table cut by rows, zeros where another rank has the row."""
    if not partial:
        return F.embedding(ids, weight)
    local = ids - start
    mine = (local >= 0) & (local < weight.shape[0])
    found = F.embedding(torch.where(mine, local, 0), weight)
    return torch.where(mine[..., None], found, 0)


def _embedding(
    node: Node, args: tuple[Any, ...], local: Local
) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    partial = local.cut is not None and local.cut.kind == "P"
    return _rows_at, (args[0], args[1], local.rank, partial), {}


def _rows_at(weight: Tensor, ids: Tensor, rank: int, partial: bool) -> Tensor:
    return rows(weight, ids, rank * weight.shape[0], partial=partial)


def _expanded(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    return x.expand(shape)


def _viewed(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    return x.reshape(shape)


def _rms_norm(x: Tensor, weight: Tensor | None = None, *, eps: float | None = None) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], weight, eps)


def _layer_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float = 1e-5) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def _dtype(name: Any) -> torch.dtype:
    found: torch.dtype = getattr(torch, str(name))
    return found


def _repeated(x: Tensor, repeats: int, dim: int) -> Tensor:
    return x.repeat_interleave(repeats, dim)


def _sliced(x: Tensor, dim: int, start: int, stop: int) -> Tensor:
    return x.narrow(dim, start, stop - start)


def _to(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype)


def _joined(parts: Any, dim: int) -> Tensor:
    return torch.cat(list(parts), dim)


def _stacked(parts: Any, dim: int) -> Tensor:
    return torch.stack(list(parts), dim)


def _variance(x: Tensor, dims: tuple[int, ...], keepdim: bool, *, correction: float = 1) -> Tensor:
    return torch.var(x, dims, correction=correction, keepdim=keepdim)


def _deviation(x: Tensor, dims: tuple[int, ...], keepdim: bool, *, correction: float = 1) -> Tensor:
    return torch.std(x, dims, correction=correction, keepdim=keepdim)


def _length(x: Tensor, dims: tuple[int, ...], keepdim: bool, *, order: float = 2) -> Tensor:
    found: Tensor = torch.linalg.vector_norm(x, order, dims, keepdim)
    return found


def _einsum(parts: Any, equation: str) -> Tensor:
    return torch.einsum(equation, *parts)


def _dropped(x: Tensor, rate: float) -> Tensor:
    return F.dropout(x, rate, True)


def _detached(x: Tensor) -> Tensor:
    return x.detach()


# Ops of our own language; each takes the node's arguments as they are.
PLAIN: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "linear": linear,
        "matmul": torch.matmul,
        "bmm": torch.matmul,
        "rms_norm": _rms_norm,
        "layer_norm": _layer_norm,
        "softmax": torch.softmax,
        "log_softmax": torch.log_softmax,
        "sum": torch.sum,
        "var": _variance,
        "std": _deviation,
        "vector_norm": _length,
        "logsumexp": torch.logsumexp,
        "einsum": _einsum,
        "mean": torch.mean,
        "amax": torch.amax,
        "amin": torch.amin,
        "permute": torch.permute,
        "slice": _sliced,
        "select": torch.select,
        "cat": _joined,
        "stack": _stacked,
        "repeat": _repeated,
        "dropout": _dropped,
        "detach": _detached,
    }
)


def emit(graph: torch.fx.Graph, node: Node, env: Mapping[str, Any], local: Local, taps: tuple[Any, ...] = ()) -> Any:
    """Adds the call of `node` to `graph`; `env` maps value names to fx nodes, a linear layer may have taps."""
    args = (*(_value(a, env) for a in node.args), *taps)
    kwargs = {k: _value(v, env) for k, v in node.kwargs}
    if node.op in PLAIN:
        return graph.call_function(PLAIN[node.op], args, kwargs)
    if node.op == "embedding":
        target, args, kwargs = _embedding(node, args, local)
        return graph.call_function(target, args, kwargs)
    if node.op == "view":
        return graph.call_function(_viewed, (args[0], tuple(-1 if d < 0 else d for d in local.shape)))
    if node.op == "expand":
        return graph.call_function(_expanded, (args[0], local.shape))
    if node.op == "cast":
        return graph.call_function(_to, (args[0], _dtype(args[1])))
    if node.op == "arange":
        return graph.call_function(torch.arange, args[:3], {"dtype": _dtype(args[3]), "device": env["device"]})
    if node.op == "full":
        return graph.call_function(
            torch.full, (local.shape, args[0]), {"dtype": _dtype(args[1]), "device": env["device"]}
        )
    name, overload = node.op.split(".")
    return graph.call_function(getattr(getattr(torch.ops.aten, name), overload), args, kwargs)


def _value(arg: Arg, env: Mapping[str, Any]) -> Any:
    if isinstance(arg, Ref):
        return env[arg.name]
    if isinstance(arg, tuple):
        return tuple(_value(a, env) for a in arg)
    return arg


def suffix_function(suffix: tuple[Node, ...]) -> Callable[..., Tensor]:
    """`f(logits, *parameters) -> logits` of the nodes after the head; parameters in the order the nodes read them."""
    graph = torch.fx.Graph()
    env: dict[str, Any] = {"logits": graph.placeholder("logits")}
    made = {"logits", *(node.name for node in suffix)}
    names = list(dict.fromkeys(r for node in suffix for r in node.refs() if r not in made))
    env.update({name: graph.placeholder(f"p{i}") for i, name in enumerate(names)})
    for node in suffix:
        env[node.name] = emit(graph, node, env, Local(node.value.shape, None, 0, 1))
    graph.output(env[suffix[-1].name])
    return torch.fx.GraphModule(torch.nn.Module(), graph)
