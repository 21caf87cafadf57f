"""The model that is verified: itself when small, else made smaller by keywords or cut to its first two blocks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from fourfold.hardware.errors import ModelError, UsageError

SMALL = 20_000_000
"""Parameters a model may have to be verified as it is."""
LARGEST = 200_000_000
"""Parameters that eight processes and a reference hold in a small memory: 16 bytes each with AdamW."""
BLOCKS = 2


def built(model: nn.Module | Callable[..., nn.Module], overrides: Mapping[str, Any]) -> nn.Module:
    """The module itself, or what the model function makes (on the meta device) under `overrides`."""
    if isinstance(model, nn.Module):
        if overrides:
            raise UsageError(
                f"{type(model).__name__} is built already: overrides ({', '.join(overrides)}) need a function"
            )
        return model
    try:
        with torch.device("meta"):
            made = model(**overrides)
    except TypeError as error:
        raise UsageError(
            f"the model function does not take {', '.join(overrides) or 'no arguments'}: {error}"
        ) from None
    if not isinstance(made, nn.Module):
        raise UsageError(f"the model function returned {type(made).__name__}; it must return a torch.nn.Module")
    return made


def reduced(model: nn.Module, *, small: int = SMALL) -> tuple[nn.Module, str]:
    """A model of at most `small` parameters as it is; a larger one at full width with two blocks; and what was done.

    Raises ModelError when that is still too large, saying what to do.
    """
    count = _parameters(model)
    if count <= small:
        return model, ""
    memo: dict[int, Any] = {}
    cut = []
    for name, module in model.named_modules():
        if isinstance(module, (nn.ModuleList, nn.Sequential)) and _repeats(module):
            kept = list(module)[:BLOCKS]
            cut.append(f"{name or 'the model'}: {BLOCKS} of {len(module)}")
            memo[id(module)] = type(module)(kept) if isinstance(module, nn.ModuleList) else nn.Sequential(*kept)
    twin = copy.deepcopy(model, memo) if cut else model
    left = _parameters(twin)
    if left > LARGEST:
        raise ModelError(
            f"{type(model).__name__} has {left / 1e9:.1f} billion parameters{' with two blocks' if cut else ''}: too "
            "many to verify on this machine; give a model function that takes keywords, and overrides such as width=256"
        )
    return twin, f"verified with {', '.join(cut)} blocks at full width" if cut else ""


def _repeats(modules: nn.ModuleList | nn.Sequential) -> bool:
    """Whether the list is a stack of like blocks."""
    kinds = {type(m) for m in modules}
    return len(modules) > BLOCKS and len(kinds) == 1 and _parameters(modules[0]) > 0


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
