"""What surrounds a capture does not change it: the user's default device, a constant that RoPE counts up."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from fourfold.compiler.capture import capture
from fourfold.compiler.models import tiny


def test_inside_the_meta_context_it_is_the_same() -> None:
    """A user may plan inside the `with torch.device("meta")` in which the model was built."""
    with torch.device("meta"):
        model = tiny("llama-1b")()
        inside = capture(model, cached=False)
    assert capture(model, cached=False) == inside


def test_our_own_llama_has_no_op_without_a_rule() -> None:
    assert capture(tiny("llama-1b")(), cached=False).notes == ()


def test_what_a_loop_casts_for_each_layer_is_cast_once(models: dict[str, Callable[[], nn.Module]]) -> None:
    """Angles in the dtype of the layers: two values for all, in whatever dtype, and no op without a rule."""
    shapes = []
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        graph = capture(models["neox"](), dtype, cached=False)
        assert [call.block for call in graph.calls] == ["first", *["layers.*"] * 3, "last"] and graph.notes == ()
        casts = [
            node for node in graph.blocks["first"].nodes if node.op == "cast" and str(dtype).endswith(node.value.dtype)
        ]
        assert dtype is torch.float32 or len(casts) == 2
        shapes.append([len(block.outputs) for block in graph.blocks.values()])
    assert shapes == [[3, 1, 1]] * 3
