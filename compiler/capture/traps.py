"""Code that export would record wrongly without a word: seen while the model runs, and refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.checkpoint as torch_checkpoint
from torch import nn

from fourfold.hardware.errors import ModelError

OURS = ("fourfold.", "torch.")


@contextmanager
def watched() -> Iterator[list[str]]:
    """While open, calls of custom autograd functions raise; activation checkpointing is let through and noted."""
    notes: list[str] = []
    apply: Any = vars(torch.autograd.Function)["apply"]
    checkpoint = torch_checkpoint.checkpoint

    def refused(cls: type, *args: Any, **kwargs: Any) -> Any:
        if cls.__module__.startswith(OURS):
            return apply.__func__(cls, *args, **kwargs)
        raise ModelError(
            f"{cls.__module__}.{cls.__qualname__} is a torch.autograd.Function: capture would keep its forward and lose "
            "its backward; write it as torch.library.custom_op with register_autograd, or in plain torch"
        )

    def transparent(function: Any, *args: Any, **kwargs: Any) -> Any:
        for word in ("use_reentrant", "context_fn", "preserve_rng_state", "determinism_check", "debug", "early_stop"):
            kwargs.pop(word, None)
        note = "torch.utils.checkpoint in the model is ignored: the plan decides what is recomputed"
        if note not in notes:
            notes.append(note)
        return function(*args, **kwargs)

    torch.autograd.Function.apply = classmethod(refused)  # type: ignore[assignment]
    torch_checkpoint.checkpoint = transparent  # type: ignore[assignment]
    try:
        yield notes
    finally:
        torch.autograd.Function.apply = apply
        torch_checkpoint.checkpoint = checkpoint


def refuse_stateful(model: nn.Module) -> None:
    """Raises ModelError for modules whose training state lives outside parameters, such as batch norm."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ModelError(f"{name} is a {type(module).__name__}: its statistics mix documents; use a layer norm")
