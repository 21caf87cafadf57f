"""Models of Hugging Face's transformers, captured through its public interfaces for attention and masks.

The copy that is exported gets an attention of ours and a mask that is never built: packed documents need none. The
user's model stays as it is. Nothing here imports transformers: a model of it can only be there once the user has.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourfold.hardware.errors import ModelError

NAME = "fourfold"
"""Our attention among those that transformers knows."""
LAYERS = ("full_attention", "sliding_attention")
"""Kinds of layers (`config.layer_types`) that attention over packed documents computes."""
PASSED_ON = ("cache_position", "output_attentions", "output_hidden_states", "position_ids", "return_dict", "use_cache")
"""Arguments of an attention function that do not change what it computes."""


def version() -> str:
    """The version of transformers, if it is loaded: the code that a captured model of it came from."""
    return str(getattr(sys.modules.get("transformers"), "__version__", ""))


def settled(twin: nn.Module) -> nn.Module:
    """`twin` itself, its transformers models set to our attention, no cache, and nothing but logits.

    Raises ModelError, naming the class, where attention is not reached through transformers' attention interface or is
    of a kind that packed documents do not have.
    """
    for name, model in _outermost(twin):
        transformers = sys.modules["transformers"]
        transformers.AttentionInterface.register(NAME, attention)
        transformers.AttentionMaskInterface.register(NAME, no_mask)
        _check(name, model)
        model.set_attn_implementation(NAME)
        if model.config._attn_implementation != NAME:
            raise ModelError(
                f"{name} does not reach its attention through transformers.AttentionInterface: capture cannot tell "
                "where it attends; use a model that does, or write it with F.scaled_dot_product_attention"
            )
        for config in {id(m.config): m.config for m in model.modules() if _is_ours(m)}.values():
            config.use_cache = config.output_attentions = config.output_hidden_states = False
            config.return_dict = True
    return twin


def attention(
    module: nn.Module,
    query_BHSE: Tensor,
    key_BGSE: Tensor,
    value_BGSE: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Attention [B, S, H, E] as transformers calls it: one op in the captured graph. B batch, S sequence, E head width.

    H query heads share G key/value heads; a token sees the last `sliding_window` tokens, itself counted. Raises
    ModelError for a mask, or any argument that changes attention otherwise.
    """
    kind = type(module).__name__
    if attention_mask is not None:
        raise ModelError(f"{kind} is given a mask: documents are packed, and what a token sees is its own document")
    other = [name for name, value in rest.items() if value is not None and name not in PASSED_ON]
    if other:
        raise ModelError(f"{kind} changes its attention by {', '.join(other)}: no rule knows it")
    causal = bool(getattr(module, "is_causal", True)) if is_causal is None else is_causal
    if sliding_window is None:
        out_BHSE = F.scaled_dot_product_attention(
            query_BHSE, key_BGSE, value_BGSE, dropout_p=dropout, is_causal=causal, scale=scaling, enable_gqa=True
        )
    else:
        scale = query_BHSE.shape[-1] ** -0.5 if scaling is None else float(scaling)
        q_BHSE, k_BGSE = (x.to(value_BGSE.dtype) for x in (query_BHSE, key_BGSE))
        out_BHSE = windowed(q_BHSE, k_BGSE, value_BGSE, dropout, causal, scale, True, sliding_window)
    return out_BHSE.transpose(1, 2).contiguous(), None


def _windowed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout_p: float,
    is_causal: bool,
    scale: float,
    enable_gqa: bool,
    window: int,
) -> Tensor:
    """Scaled dot-product attention in which token i sees token j only if j > i - window: with a mask, written out."""
    rows = torch.arange(query.shape[-2], device=query.device)
    behind = rows[:, None] - rows
    seen = (behind < window) & (behind >= 0) if is_causal else behind < window
    return F.scaled_dot_product_attention(query, key, value, seen, dropout_p, scale=scale, enable_gqa=enable_gqa)


windowed = torch.library.custom_op("fourfold::windowed_attention", _windowed, mutates_args=())
"""One node of the exported graph, as scaled_dot_product_attention is: its arguments have the same names."""
windowed.register_fake(lambda query, *_: torch.empty_like(query))


def no_mask(*_: Any, use_vmap: bool = False, **__: Any) -> None:
    """No mask. Raises ModelError where the model adds a mask function of its own, which would be lost."""
    if use_vmap:
        raise ModelError(
            "the model adds a mask function of its own to the causal one: only causal attention is captured"
        )


def _outermost(root: nn.Module) -> Iterator[tuple[str, Any]]:
    """The transformers models in a module, outermost ones only, with the names of their classes."""
    if _is_ours(root):
        yield type(root).__name__, root
        return
    for child in root.children():
        yield from _outermost(child)


def _is_ours(module: nn.Module) -> bool:
    kind = getattr(sys.modules.get("transformers.modeling_utils"), "PreTrainedModel", None)
    return kind is not None and isinstance(module, kind)


def _check(name: str, model: Any) -> None:
    kinds = getattr(model.config, "layer_types", None) or LAYERS
    other = [kind for kind in dict.fromkeys(kinds) if kind not in LAYERS]
    if other:
        raise ModelError(f"{name} has layers of {', '.join(other)}: only {' and '.join(LAYERS)} is captured")
