"""Models of Hugging Face's transformers (the extra `hf`) from a config: an object, a config.json, or its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fourfold.hardware.errors import ModelError, UsageError

FILE = "config.json"
HEAD_WIDTH, VOCABULARY = 16, 256
"""Sizes of a model made small."""


def is_config(text: str) -> bool:
    """Whether a model is named by its config: a .json file, or a folder."""
    return text.endswith(".json") or Path(text).is_dir()


def from_config(source: Any, overrides: Mapping[str, Any] | None = None, *, small: bool = False) -> nn.Module:
    """The causal language model that a config describes, its fields changed by `overrides`.

    source: a config object of transformers, the path of a config.json, or of the folder that holds one. `small`: two
    layers of small widths, as many key/value heads as fit. Under `torch.device("meta")` nothing is allocated. Raises
    UsageError when transformers is not installed, for a file that is no config and a field that is not there;
    ModelError when transformers cannot build the model.
    """
    transformers = _transformers()
    fields, name = _fields(source)
    kind = _kind(transformers, fields, name)
    given = dict(overrides or {})
    changed = {**(_small(fields) if small else {}), **given}
    known = {**kind().to_dict(), **fields}
    for key in given:
        if key not in known:
            near = get_close_matches(key, known, n=3, cutoff=0.4)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise UsageError(f"{name} has no field called {key!r}{hint}")
    try:
        config = kind.from_dict(_changed({**kind.from_dict(dict(fields)).to_dict(), **fields}, changed))
        # Masters and compute dtype are the plan's to choose, so the config's own is not.
        made: nn.Module = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise ModelError(f"transformers cannot build {name}: {type(error).__name__}: {text}") from error
    return made


def _transformers() -> Any:
    """The library. It is an extra, and slow to import: only those who name a config need it."""
    try:
        import transformers
    except ImportError as error:
        raise UsageError(f"a config.json needs transformers: pip install 'fourfold[hf]' ({error})") from None
    return transformers


def _fields(source: Any) -> tuple[dict[str, Any], str]:
    """What a config says, and how to call it in messages."""
    if hasattr(source, "to_dict") and hasattr(source, "model_type"):
        return dict(source.to_dict()), type(source).__name__
    path = Path(source)
    path = path / FILE if path.is_dir() else path
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}; a model is given by its {FILE}") from None
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict) or "model_type" not in found:
        raise UsageError(f"{path} is no config of transformers: it says no model_type")
    return found, str(path)


def _kind(transformers: Any, fields: Mapping[str, Any], name: str) -> Any:
    """The class of the config."""
    try:
        return type(transformers.AutoConfig.for_model(fields["model_type"]))
    except ValueError:
        raise UsageError(
            f"{name} is of model_type {fields['model_type']!r}, which transformers {transformers.__version__} does "
            "not know"
        ) from None


def _changed(fields: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The fields with changes, and what follows from them: the kinds of fewer layers, the width of a head."""
    found = {**fields, **changes}
    layers, kinds = found.get("num_hidden_layers", 0), found.get("layer_types")
    if "layer_types" not in changes and kinds is not None and len(kinds) != layers:
        found["layer_types"] = kinds[:layers] if len(kinds) > layers else None
    if "head_dim" not in changes and _even(fields):
        found["head_dim"] = found["hidden_size"] // found["num_attention_heads"]
    return found


def _even(fields: Mapping[str, Any]) -> bool:
    """Whether the heads together are as wide as the model, so that the width of one follows."""
    heads = fields.get("num_attention_heads", 0)
    return bool(fields.get("head_dim")) and fields["head_dim"] * heads == fields.get("hidden_size")


def _small(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Changes that make a model which N processes of one computer verify in seconds, of the same kind."""
    heads = int(fields.get("num_attention_heads", 4))
    kv_heads = int(fields.get("num_key_value_heads") or heads)
    kept = min(kv_heads, 4)
    few = kept * min(heads // kv_heads, 2)
    found: dict[str, Any] = {
        "num_hidden_layers": 2,
        "num_attention_heads": few,
        "num_key_value_heads": kept,
        "hidden_size": HEAD_WIDTH * few,
        "intermediate_size": 6 * HEAD_WIDTH,
        "vocab_size": VOCABULARY,
    }
    if fields.get("head_dim") and not _even(fields):
        found |= {"head_dim": HEAD_WIDTH, "hidden_size": 5 * HEAD_WIDTH}
    return found | {key: None for key in ("pad_token_id", "bos_token_id", "eos_token_id") if fields.get(key)}
