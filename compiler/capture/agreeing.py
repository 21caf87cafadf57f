"""Products of tensors in two dtypes, made to agree: the weights are in the compute dtype, buffers keep their own.

A model whose rotary tables stay in float32 hands float32 queries to a bfloat16 attention. Autocast would run the
product in the compute dtype; so does this, and says so.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten

PRODUCTS = frozenset(
    {"linear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "einsum", "scaled_dot_product_attention"}
)
NORMS = frozenset({"layer_norm", "rms_norm"})


class Agreeing(TorchFunctionMode):
    """While active, products run in `dtype` where their inputs disagree, norms in the dtype of what they normalise."""

    def __init__(self, dtype: torch.dtype, notes: list[str]) -> None:
        super().__init__()
        self.dtype, self.notes = dtype, notes

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        kwargs = kwargs or {}
        if name in PRODUCTS or name in NORMS:
            values, spec = tree_flatten((args, kwargs))
            kinds = [v.dtype for v in values if isinstance(v, torch.Tensor) and v.is_floating_point()]
            if len(set(kinds)) > 1:
                wanted = kinds[0] if name in NORMS else self.dtype
                args, kwargs = tree_unflatten([_cast(v, wanted) for v in values], spec)
                self._note(name, kinds, wanted)
        return func(*args, **kwargs)

    def _note(self, name: str, kinds: list[torch.dtype], wanted: torch.dtype) -> None:
        words = [str(kind).removeprefix("torch.") for kind in (*dict.fromkeys(kinds), wanted)]
        note = f"{name} is given {' and '.join(words[:-1])}: computed in {words[-1]}"
        if note not in self.notes:
            self.notes.append(note)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    floating = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.to(dtype) if floating else value
