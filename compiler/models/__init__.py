"""Models that ship with Fourfold, plain modules like any user's, and models found by `path/to/file.py:function` or by
a config of Hugging Face's transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

from torch import nn

from fourfold.compiler.models import huggingface
from fourfold.compiler.models.gpt import GPT, GPTConfig
from fourfold.compiler.models.llama import Llama, LlamaConfig
from fourfold.compiler.models.reference import is_file, made_by
from fourfold.hardware.errors import UsageError

Config = LlamaConfig | GPTConfig
Make = Callable[..., nn.Module]


def _llama(width: int, layers: int, heads: int, feed_forward: int, *, tied: bool = False) -> LlamaConfig:
    return LlamaConfig(128256, width, layers, heads, 8, feed_forward, tied=tied)


def _gpt(width: int, layers: int, heads: int) -> GPTConfig:
    """Vocabulary padded as in Megatron-LM, which trained with 2048 positions."""
    return GPTConfig(51200, width, layers, heads, context=2048)


SHIPPED: Mapping[str, Config] = MappingProxyType(
    {
        # Llama 3.2 (1B, 3B) and 3.1: model cards and arXiv 2407.21783, table 3.
        "llama-1b": _llama(2048, 16, 32, 8192, tied=True),
        "llama-3b": _llama(3072, 28, 24, 8192, tied=True),
        "llama-8b": _llama(4096, 32, 32, 14336),
        "llama-70b": _llama(8192, 80, 64, 28672),
        "llama-405b": _llama(16384, 126, 128, 53248),
        "gpt2": GPTConfig(50257, 768, 12, 12, context=1024),
        "gpt-1.3b": _gpt(2048, 24, 16),
        # Korthikanti et al., arXiv 2205.05198, table 3.
        "gpt-22b": _gpt(6144, 48, 64),
        "gpt-175b": _gpt(12288, 96, 96),
        "gpt-530b": _gpt(20480, 105, 128),
        "gpt-1t": _gpt(25600, 128, 160),
    }
)
"""Sizes by name. Which class a model is follows from its config."""


def shipped(name: str) -> Make:
    """The function that builds the shipped model `name`; its keywords change fields of the config.

    Under `torch.device("meta")` it allocates nothing. Raises UsageError with near matches for another name.
    """
    return _maker(name, _config(name))


def tiny(name: str) -> Make:
    """As `shipped`, in a form that N processes of one computer verify in seconds: two layers, width 128."""
    config = _config(name)
    small = LlamaConfig(layers=2) if isinstance(config, LlamaConfig) else GPTConfig(layers=2, dropout=config.dropout)
    return _maker(name, replace(small, tied=config.tied))


def from_reference(text: str, overrides: Mapping[str, Any] | None = None, *, small: bool = False) -> nn.Module:
    """The module that `text` names: `path/to/file.py:function`, a config.json or its folder, or a shipped model.

    `overrides` are the keywords of the function, or fields of the config; `small`: the tiny form of a config. Raises
    UsageError for names and keywords that are not there, ModelError when the user's function fails or returns no
    module.
    """
    given = dict(overrides or {})
    if text not in SHIPPED and huggingface.is_config(text):
        return huggingface.from_config(text, given, small=small)
    if is_file(text):
        return made_by(text, given)
    return (tiny if small else shipped)(text)(**given)


def _config(name: str) -> Config:
    if name in SHIPPED:
        return SHIPPED[name]
    near = get_close_matches(name.lower(), SHIPPED, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"shipped are {', '.join(SHIPPED)}."
    raise UsageError(f"no model is called {name!r}: {hint} A model of your own is named path/to/file.py:function")


def _maker(name: str, config: Config) -> Make:
    def make(**overrides: Any) -> nn.Module:
        known = [f.name for f in fields(config)]
        unknown = [key for key in overrides if key not in known]
        if unknown:
            raise UsageError(f"{name} has no size called {unknown[0]!r}; it has {', '.join(known)}")
        changed: Any = replace(config, **overrides)
        _check(name, changed)
        return Llama(changed) if isinstance(changed, LlamaConfig) else GPT(changed)

    return make


def _check(name: str, config: Config) -> None:
    for size in ("vocabulary", "width", "layers", "heads", "kv_heads", "feed_forward", "context"):
        value = getattr(config, size, None)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise UsageError(f"{name}: {size}={value} is no size; give a whole number of at least 1")
    if config.width % config.heads:
        raise UsageError(f"{name}: {config.heads} heads do not divide width {config.width}")
    if isinstance(config, LlamaConfig) and config.heads % config.kv_heads:
        raise UsageError(f"{name}: {config.kv_heads} key/value heads do not divide {config.heads} heads")
