"""Models of transformers: captured they equal transformers' own run of each document, and their plans are proven."""

from __future__ import annotations

from typing import Any

import planned
import pytest
import torch
import torch.nn.functional as F
from packed_run import documents, gradients, packed_loss, plain_loss
from torch import nn

from fourfold.compiler.capture import capture
from fourfold.compiler.capture.huggingface import NAME
from fourfold.compiler.verify import verify
from fourfold.hardware.errors import ModelError
from fourfold.ir.mesh import Mesh
from fourfold.ir.plan import Sharing
from fourfold.ir.report import asked
from fourfold.ir.workload import Workload
from fourfold.passes.price.flops import model_flops

transformers = pytest.importorskip("transformers")

SIZES = {"vocab_size": 62, "hidden_size": 20, "intermediate_size": 34, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6}
SCALED = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
WINDOW = {"use_sliding_window": True, "sliding_window": 8}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("Qwen3", {**SIZES, **HEADS}),
    "qwen3-tied": ("Qwen3", {**SIZES, **HEADS, "tie_word_embeddings": True, "attention_bias": True}),
    "qwen3-windows": ("Qwen3", {**SIZES, **HEADS, **WINDOW, "max_window_layers": 1}),
    "mistral": ("Mistral", {**SIZES, **HEADS, "sliding_window": 5}),
    "llama": ("Llama", {**SIZES, "num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 3}),
    "llama3": ("Llama", {**SIZES, "num_attention_heads": 2, "rope_parameters": SCALED, "tie_word_embeddings": True}),
}


def made(name: str, **changes: Any) -> Any:
    family, fields = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**fields, **changes})
    return getattr(transformers, f"{family}ForCausalLM")(config)


@pytest.mark.parametrize("name", MODELS)
def test_packed_equals_document_by_document(name: str) -> None:
    model = made(name).double()
    graph = capture(model, torch.float64, cached=False)
    batch = documents(61)
    wanted = plain_loss(model, batch)
    found = packed_loss(graph, model, batch)
    right, ours = gradients(model, wanted), gradients(model, found)
    # The norms of transformers round to float32 whatever the model's dtype.
    assert torch.allclose(found.double(), wanted, rtol=1e-8, atol=0), (found.item(), wanted.item())
    largest = max(g.norm() for g in right.values())
    errors = {n: float((ours[n] - g).norm() / max(g.norm(), 1e-3 * largest)) for n, g in right.items()}
    assert max(errors.values()) < 1e-7, max(errors.items(), key=lambda e: e[1])


def test_one_attention_a_layer_and_no_mask() -> None:
    model = made("qwen3")
    before = model.config.to_dict()
    graph = capture(model, torch.bfloat16, cached=False)
    ops = [node.op for block in graph.blocks.values() for node in block.nodes]
    assert ops.count("attention") == 1 and len(graph.calls) == 4
    assert not {"arange", "cumsum", "where.self", "expand", "repeat"} & set(ops)
    assert {n.value.dtype for b in graph.blocks.values() for n in b.nodes if n.op == "attention"} == {"bfloat16"}
    assert model.config.to_dict() == before and model.config._attn_implementation != NAME


def test_a_model_inside_a_model_of_the_users_is_found() -> None:
    class Reward(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = made("qwen3")

        def forward(self, tokens_BS: torch.Tensor) -> torch.Tensor:
            return self.inner(input_ids=tokens_BS).logits

    graph = capture(Reward(), torch.float32, cached=False)
    assert [call.prefix for call in graph.calls][1:3] == ["inner.model.layers.0", "inner.model.layers.1"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"attention_dropout": 0.1}, ("dropout 0.1 inside attention",)),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, ("Qwen3ForCausalLM",)),
    ],
)
def test_what_packed_documents_cannot_keep_is_refused(changes: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(ModelError) as found:
        capture(made("qwen3", **changes), torch.float32, cached=False)
    assert all(word in str(found.value) for word in words), found.value
    assert "\n" not in str(found.value)


def test_attention_by_hand_is_refused() -> None:
    config = transformers.Qwen3Config(**SIZES, **HEADS)

    class Own(transformers.Qwen3PreTrainedModel):
        def __init__(self) -> None:
            super().__init__(config)
            self.tokens = nn.Embedding(62, 20)

        def forward(self, tokens_BS: torch.Tensor) -> torch.Tensor:
            return F.linear(self.tokens(tokens_BS), self.tokens.weight)

        @classmethod
        def _can_set_attn_implementation(cls) -> bool:
            return False

    with pytest.raises(ModelError, match="AttentionInterface"):
        capture(Own(), torch.float32, cached=False)


MESHES = {
    "dp2": Mesh(dp=2),
    "tp2": Mesh(tp=2),
    "sp2": Mesh(sp=2),
    "pp2": Mesh(pp=2),
    "dp2xtp2": Mesh(dp=2, tp=2),
    "dp2xpp2": Mesh(dp=2, pp=2),
    "pp2xtp2": Mesh(pp=2, tp=2),
    "dp2xsp2": Mesh(dp=2, sp=2),
    "tp2xsp2": Mesh(tp=2, sp=2),
    "pp2xsp2": Mesh(pp=2, sp=2),
}


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("name", ["qwen3", pytest.param("qwen3-tied", marks=pytest.mark.slow)])
def test_verify(name: str, mesh: str) -> None:
    model, pp = made(name), MESHES[mesh].pp
    stages: dict[str, Any] = {"schedule": "1f1b", "bounds": (2,), "micro_steps": 2, "zero": 1} if pp > 1 else {}
    plan = planned.plan_for(model, MESHES[mesh], sharing=Sharing("ring", "zigzag"), **stages)
    report = verify(model, plan, steps=2, ranks=4)
    assert report.passed, str(report)


FOUR = {
    "dp2xpp2xtp2": Mesh(dp=2, pp=2, tp=2),
    "dp2xpp2xsp2": Mesh(dp=2, pp=2, sp=2),
    "dp2xsp2xtp2": Mesh(dp=2, sp=2, tp=2),
    "pp2xsp2xtp2": Mesh(pp=2, sp=2, tp=2),
    "dp2xpp2xsp2xtp2": Mesh(dp=2, pp=2, sp=2, tp=2),
}


@pytest.mark.slow
@pytest.mark.parametrize("mesh", FOUR)
@pytest.mark.parametrize("name", ["qwen3", "qwen3-tied"])
def test_three_and_four_axes_at_once(name: str, mesh: str) -> None:
    """8 and 16 processes: loss, every gradient, the clipped step and the norm, in float32."""
    model, degrees = made(name), FOUR[mesh]
    plan = planned.plan_for(
        model,
        degrees,
        zero=1,
        recompute="regions",
        micro_steps=2,
        bounds=(2,) if degrees.pp > 1 else (),
        sharing=Sharing("ring", "zigzag"),
    )
    report = verify(model, plan, dtype="float32", steps=1, ranks=degrees.ranks)
    assert report.passed, str(report)
    norm = next(check for check in report.checks if check.kind == "norm")
    assert norm.error <= 1e-5


def test_windows_are_of_the_layers_that_have_them() -> None:
    """A full layer and one with a window are two kinds of blocks; what is seen is counted."""
    graph = capture(made("qwen3-windows"), torch.bfloat16, cached=False)
    found = [dict(n.kwargs) for c in graph.calls for n in graph.blocks[c.block].nodes if n.op == "attention"]
    assert [one.get("window") for one in found] == [None, 8]
    assert ("windows", "8 tokens in 1 of 2 attentions") in asked(planned.plan_for(graph, Mesh())).rows
    whole = capture(made("qwen3"), torch.bfloat16, cached=False)
    work = Workload.fixed(length=100, sequences=3)
    hidden = 3 * 92 * 93 / 2  # query i of 100 does not see i - 7 keys, from the ninth on
    assert model_flops(whole, work) - model_flops(graph, work) == 12.0 * 4 * 6 * hidden


WINDOWED = {"sp2": Mesh(sp=2), "tp2": Mesh(tp=2), "dp2xpp2": Mesh(dp=2, pp=2), "tp2xsp2": Mesh(tp=2, sp=2)}


@pytest.mark.parametrize("method", ["ring", "gather_kv", "ulysses"])
@pytest.mark.parametrize("name", ["qwen3-windows", pytest.param("mistral", marks=pytest.mark.slow)])
def test_windows_on_shared_documents(name: str, method: str) -> None:
    model = made(name)
    sharing = Sharing(method, "contiguous" if method == "ulysses" else "zigzag", 2 if method == "ulysses" else 1)
    report = verify(model, planned.plan_for(model, Mesh(sp=2), sharing=sharing, recompute="regions"), steps=1)
    assert report.passed, str(report)


@pytest.mark.parametrize("mesh", WINDOWED)
@pytest.mark.parametrize("name", ["qwen3-windows", pytest.param("mistral", marks=pytest.mark.slow)])
def test_windows_on_every_axis(name: str, mesh: str) -> None:
    model, pp = made(name), WINDOWED[mesh].pp
    stages: dict[str, Any] = {"bounds": (2,), "micro_steps": 2, "zero": 1} if pp > 1 else {}
    plan = planned.plan_for(model, WINDOWED[mesh], sharing=Sharing("ring", "zigzag"), **stages)
    report = verify(model, plan, steps=2, ranks=4)
    assert report.passed, str(report)
