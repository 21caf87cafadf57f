"""What capture must not suffer in silence, and what it must leave as it found it."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
import torch.utils.checkpoint as torch_checkpoint
from packed_run import documents, packed_loss, plain_loss
from torch import nn

from fourfold.compiler.capture import capture
from fourfold.compiler.models.gpt import GPT, GPTConfig
from fourfold.hardware.errors import ModelError
from fourfold.ir.graph import Graph

Models = dict[str, Callable[[], nn.Module]]


def captured(model: nn.Module, dtype: torch.dtype = torch.float64) -> Graph:
    return capture(model, dtype, cached=False)


def patched() -> tuple[object, ...]:
    """Everything of torch and Python that capture touches while it runs."""
    return (
        vars(torch.autograd.Function)["apply"],
        torch_checkpoint.checkpoint,
        getattr(torch_checkpoint, "_checkpoint_without_reentrant_generator", None),
        logging.root.manager.disable,
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
    )


def test_global_state_is_as_before(models: Models) -> None:
    before = patched()
    captured(models["plain"]())
    assert patched() == before
    with pytest.raises(ModelError):
        captured(nn.Sequential(nn.Embedding(8, 8), nn.BatchNorm1d(8)))
    with pytest.raises(ModelError):
        captured(nn.Embedding(8, 8))
    assert patched() == before


def test_the_model_is_as_before(models: Models) -> None:
    model = models["tied"]().eval()
    before = {name: (id(p), p.dtype, p.device) for name, p in model.named_parameters(remove_duplicate=False)}
    captured(model, torch.bfloat16)
    after = {name: (id(p), p.dtype, p.device) for name, p in model.named_parameters(remove_duplicate=False)}
    assert after == before and not model.training


def test_capture_twice_is_the_same(models: Models) -> None:
    assert captured(models["gate-up"]()) == captured(models["gate-up"]())


@pytest.mark.parametrize("name", ["checkpointed", "checkpointed-reentrant"])
def test_checkpointing_is_noted(name: str, models: Models) -> None:
    assert (
        "torch.utils.checkpoint in the model is ignored: the plan decides what is recomputed"
        in captured(models[name]()).notes
    )


def test_unknown_ops_are_noted(models: Models) -> None:
    notes = captured(models["unknown-ops"]()).notes
    assert "aten.special_ndtr.default in layers.* has no rule: computed whole on every tensor rank" in notes


def test_products_in_two_dtypes_are_noted(models: Models) -> None:
    graph = captured(models["rotary-tables"](), torch.bfloat16)
    note = "scaled_dot_product_attention is given float32 and bfloat16: computed in bfloat16"
    assert note in graph.notes
    assert not captured(models["plain"](), torch.bfloat16).notes


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocabulary=61, width=24, layers=2, context=64, dropout=0.5)).double()
    graph = captured(model)
    batch = documents(61)
    wanted = plain_loss(model.eval(), batch)
    assert torch.allclose(packed_loss(graph, model, batch, training=False).double(), wanted, rtol=1e-10, atol=0)
    first, second = (packed_loss(graph, model, batch) for _ in range(2))
    assert first != second and not torch.allclose(first.double(), wanted)


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("plain", {"first": 1, "layers.*": 2, "last": 1}),
        ("no-list", {"first": 1, "one": 3, "last": 1}),
        ("nested-lists", {"first": 1, "stages.*.blocks.*": 4, "last": 1}),
        ("called-thrice", {"first": 1, "layers.*": 3, "last": 1}),
        ("one-block", {"model": 1}),
    ],
)
def test_equal_blocks_are_written_once(name: str, counts: dict[str, int], models: Models) -> None:
    assert captured(models[name]()).counts == counts


@pytest.mark.parametrize("name", ["qkv-split", "qkv-unbind", "qkv-permute", "conv1d", "torch-attention", "nano-gpt"])
def test_fused_projections_come_apart(name: str, models: Models) -> None:
    parts = captured(models[name]()).parts.values()
    spans = {(p.start, p.stop) for p in parts if p.of.endswith("weight")}
    assert spans == {(0, 24), (24, 48), (48, 72)}


@pytest.mark.parametrize("name", ["qkv-by-head", "qkv-by-head-chunk", "plain"])
def test_what_is_fused_by_head_stays_one(name: str, models: Models) -> None:
    assert not captured(models[name]()).parts
