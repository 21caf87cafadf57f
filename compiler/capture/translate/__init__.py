"""How each exported op becomes one of ours: aliases folded, arguments made positional, sizes packed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from fourfold.compiler.capture.translate import contractions, reductions, shapes
from fourfold.compiler.capture.translate.translation import Length, Translation

__all__ = ["ALIASES", "HANDLERS", "Length", "Translation"]

ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "absolute": "abs",
        "clip": "clamp",
        "divide": "div",
        "greater": "gt",
        "greater_equal": "ge",
        "less": "lt",
        "less_equal": "le",
        "multiply": "mul",
        "negative": "neg",
        "not_equal": "ne",
        "special_expit": "sigmoid",
        "subtract": "sub",
        "true_divide": "div",
    }
)
"""Other names of an op with the same overloads."""

HANDLERS: Mapping[str, Callable[[Translation], Any]] = MappingProxyType(
    {
        **dict.fromkeys(
            (
                "view",
                "reshape",
                "_unsafe_view",
                "flatten",
                "unflatten",
                "unsqueeze",
                "squeeze",
                "view_as",
                "reshape_as",
            ),
            shapes.view,
        ),
        **dict.fromkeys(("permute", "transpose", "t", "swapaxes", "swapdims", "numpy_T", "mT"), shapes.permute),
        **dict.fromkeys(("movedim", "moveaxis"), shapes.movedim),
        **dict.fromkeys(("expand", "expand_as", "broadcast_to"), shapes.expand),
        **dict.fromkeys(("to", "_to_copy", "type_as", "float", "double"), shapes.cast),
        **dict.fromkeys(("zeros", "ones", "full", "scalar_tensor", "new_zeros", "new_ones", "new_full"), shapes.full),
        **dict.fromkeys(("chunk", "split", "split_with_sizes", "unbind", "tensor_split"), shapes.pieces),
        **dict.fromkeys(("repeat", "tile"), shapes.tile),
        **dict.fromkeys(("cat", "concat", "concatenate"), shapes.cat),
        "slice": shapes.piece,
        "narrow": shapes.narrow,
        "select": shapes.select,
        "stack": shapes.stack,
        "repeat_interleave": shapes.repeat_interleave,
        "arange": shapes.arange,
        **dict.fromkeys(("matmul", "mm", "bmm", "mv"), contractions.matmul),
        "linear": contractions.linear,
        "addmm": contractions.addmm,
        "einsum": contractions.einsum,
        **dict.fromkeys(("outer", "ger"), contractions.outer),
        "embedding": contractions.embedding,
        "index_select": contractions.index_select,
        "index": contractions.index,
        **dict.fromkeys(("scaled_dot_product_attention", "windowed_attention"), contractions.attention),
        **dict.fromkeys(
            ("sum", "mean", "amax", "amin", "var", "std", "linalg_vector_norm", "norm", "logsumexp"),
            reductions.reduction,
        ),
        **dict.fromkeys(("var_mean", "std_mean"), reductions.moments),
        **dict.fromkeys(("softmax", "log_softmax", "_softmax", "_log_softmax"), reductions.softmax),
        **dict.fromkeys(("tril", "triu", "cumsum", "cumprod", "flip", "roll", "sort", "topk"), reductions.ordered),
        "dropout": reductions.dropout,
        "rms_norm": reductions.rms_norm,
        "layer_norm": reductions.layer_norm,
        "glu": reductions.glu,
    }
)
