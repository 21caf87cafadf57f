"""What surrounds a capture does not change it: the user's default device, a constant that RoPE counts up."""

from __future__ import annotations

import torch

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
