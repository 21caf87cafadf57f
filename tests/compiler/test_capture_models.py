"""Models never seen before: captured and run packed they equal the plain module run document by document, or one
line says why not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from packed_run import documents, gradients, packed_loss, plain_loss
from torch import nn

from fourfold.compiler.capture import capture
from fourfold.hardware.errors import ModelError


def built(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().double()


def test_packed_equals_document_by_document(accepted: Callable[[], nn.Module]) -> None:
    model = built(accepted)
    graph = capture(model, torch.float64, cached=False)
    batch = documents(61)
    wanted = plain_loss(model, batch)
    found = packed_loss(graph, model, batch)
    assert torch.allclose(found.double(), wanted, rtol=1e-10, atol=0), (found.item(), wanted.item())
    right, ours = gradients(model, wanted), gradients(model, found)
    largest = max(g.norm() for g in right.values())
    errors = {n: float((ours[n] - g).norm() / max(g.norm(), 1e-3 * largest)) for n, g in right.items()}
    assert max(errors.values()) < 1e-9, max(errors.items(), key=lambda e: e[1])


def test_refused_in_one_line(
    refused: tuple[Callable[[], nn.Module], tuple[str, ...]], capfd: pytest.CaptureFixture[str]
) -> None:
    make, words = refused
    with pytest.raises(ModelError) as found:
        capture(built(make), torch.float64, cached=False)
    text = str(found.value)
    assert "\n" not in text and len(text) < 420, text
    assert all(word in text for word in words), text
    assert capfd.readouterr() == ("", "")
