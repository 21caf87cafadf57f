"""The pieces of verify: what a plan should hold and send, the batch, the plan made to fit, the model made small."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import planned
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fourfold.backends.batch.batching import dealt
from fourfold.compiler.capture import capture
from fourfold.compiler.models.llama import Llama, LlamaConfig
from fourfold.compiler.verify import verify
from fourfold.compiler.verify.batch import ragged
from fourfold.compiler.verify.check import prepared
from fourfold.compiler.verify.expect import cut_share, expected_bytes, expected_collectives, lowered, moves_of, stored
from fourfold.compiler.verify.plain import brought_to_life
from fourfold.compiler.verify.reduced import built, reduced
from fourfold.compiler.verify.refit import refitted, smaller
from fourfold.hardware.errors import ModelError, UsageError
from fourfold.ir.mesh import Mesh
from fourfold.ir.plan import Plan


def fitted(plan: Plan, model: nn.Module, mesh: Mesh | None = None) -> Plan:
    graph = capture(model, torch.float32)
    return refitted(plan, graph, dtype="float32", mesh=mesh or plan.mesh, capacity=100, lengths=(10, 20))


@pytest.mark.parametrize("pool", [1, 2, 3, 4])
def test_shares_of_the_pool_add_up_and_tp_halves_what_it_cuts(pool: int) -> None:
    model = planned.llama()
    plan = fitted(planned.plan_for(model, Mesh(pool, 2), zero=3), model)
    states = stored(plan.graph, lowered(plan, plan.graph))
    held = [expected_bytes(plan.graph, plan, states, rank) for rank in range(plan.mesh.ranks)]
    whole = sum(4 * p.numel() for p in model.parameters())
    norms = sum(4 * p.numel() for n, p in model.named_parameters() if "norm" in n)
    for tensor in range(2):
        mine = [held[2 * at + tensor] for at in range(pool)]
        assert sum(h.parameters for h in mine) == (whole - norms) // 2 + norms
        assert all(h.gradients == h.parameters and h.state == 2 * h.gradients for h in mine)
    assert cut_share(plan.graph, states, 2) == 1.0
    flat = replace(plan, zero=0)
    assert expected_bytes(flat.graph, flat, states, 0).parameters == (whole - norms) // 2 + norms


def test_weights_left_whole_are_told() -> None:
    model = planned.llama()
    plan = fitted(planned.plan_for(model, Mesh(1, 2)), model)
    layers = plan.layouts["layers.*"]
    cuts = {name: cut for name, cut in layers.cuts.items() if not name.startswith("feed_forward") or "norm" in name}
    states = stored(plan.graph, lowered(plan, plan.graph))
    for name in states:
        if "feed_forward.up" in name or "feed_forward.gate" in name or "feed_forward.down" in name:
            states[name] = replace(states[name], kind="R")
    assert cuts != layers.cuts
    assert 0.3 < cut_share(plan.graph, states, 2) < 0.9


def test_collectives_of_megatrons_layout() -> None:
    """Two sums forward and two backward a layer; behind the head one sum backward, and two for the loss itself."""
    model = planned.llama()
    plan = fitted(planned.plan_for(model, Mesh(1, 2), zero=0), model)
    blocks = lowered(plan, plan.graph)
    layer, last = (moves_of(blocks[name], 64) for name in ("layers.*", "last"))
    assert (layer.forward, layer.backward) == ({"all_reduce": 2}, {"all_reduce": 2})
    assert (last.forward, last.backward) == ({"all_reduce": 2}, {"all_reduce": 1})
    assert moves_of(blocks["last"], 2049).forward == {"all_reduce": 4}
    once = expected_collectives(plan.graph, plan, blocks, (64,))
    assert once["all_reduce"] == 2 * 4 + 3
    assert expected_collectives(plan.graph, plan, blocks, (64, 64)) == {kind: 2 * n for kind, n in once.items()}
    again = replace(plan, recompute=("none", "full", "regions", "full"))
    assert expected_collectives(plan.graph, again, blocks, (64,)) == once | {"all_reduce": once["all_reduce"] + 4}
    alone = fitted(planned.plan_for(model, Mesh(2)), model)
    assert expected_collectives(alone.graph, alone, lowered(alone, alone.graph), (64,)) == {}


def test_partial_gradients_are_summed_once_for_each_reduction() -> None:
    model = planned.llama()
    plan = fitted(planned.plan_for(model, Mesh(2, 2), tokens=planned.MANY), model)
    blocks = lowered(plan, plan.graph)
    norms = {n for call in plan.graph.calls for n in (call.fqn(p) for p in blocks[call.block].partial)}
    assert norms == {n for n, _ in model.named_parameters() if "norm" in n}
    twice = {zero: expected_collectives(plan.graph, replace(plan, zero=zero), blocks, (64, 64)) for zero in range(4)}
    assert twice[2] == twice[3] == twice[1] | {"all_reduce": twice[1]["all_reduce"] + len(norms)}
    assert twice[0] == twice[1]


@settings(max_examples=60, deadline=None)
@given(
    pool=st.integers(1, 8),
    micro_steps=st.integers(1, 3),
    longest=st.none() | st.integers(4, 60),
    vocabulary=st.integers(2, 99),
)
def test_the_batch_meets_every_edge(pool: int, micro_steps: int, longest: int | None, vocabulary: int) -> None:
    batch, capacity = ragged(vocabulary=vocabulary, pool=pool, micro_steps=micro_steps, longest=longest)
    lengths = [len(item["tokens"]) for item in batch]
    ranks = dealt(lengths, ranks=pool, capacity=capacity)
    supervised = [bool((item["labels"][1:] != -100).any()) for item in batch]
    assert len(ranks[0]) == micro_steps
    assert 1 in lengths and any(n > 1 and not s for n, s in zip(lengths, supervised, strict=True)) and any(supervised)
    assert pool == 1 or any(not any(supervised[i] for step in rank for i in step.documents) for rank in ranks)
    assert any(bool((item["weights"] != 1).any()) for item in batch)
    assert max(lengths) <= (longest or 10**9)
    assert all(int(item["tokens"].max()) < vocabulary for item in batch)


@given(dp=st.integers(1, 64), tp=st.integers(1, 16), most=st.integers(1, 16))
def test_a_smaller_mesh_cuts_what_the_larger_one_cut(dp: int, tp: int, most: int) -> None:
    found = smaller(Mesh(dp, tp), most)
    assert tp % found.tp == 0 and found.dp <= dp
    assert found.ranks <= max(most, 2)
    if dp * tp <= most:
        assert found == Mesh(dp, tp)
    if dp > 1 and most >= 4:
        assert found.dp > 1


def test_recompute_of_a_shorter_model_keeps_first_and_last() -> None:
    long, short = planned.llama(6), planned.llama(2)
    plan = planned.plan_for(long, Mesh(2))
    words = ("none", "none", "none", "regions", "regions", "full", "full", "none")
    found = fitted(replace(plan, recompute=words), short)
    assert found.recompute == ("none", "none", "full", "none")


def test_a_plan_of_another_model_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="first hands on 3 values and 1 in the plan"):
        fitted(planned.plan_for(planned.gpt(), Mesh(1, 2)), planned.llama())
    plan = planned.plan_for(planned.llama(), Mesh(1, 2))
    layer = plan.graph.blocks["layers.*"]
    less = replace(layer, nodes=tuple(node for node in layer.nodes if node.name != "silu:0"))
    other = replace(plan, graph=replace(plan.graph, blocks={**plan.graph.blocks, "layers.*": less}))
    with pytest.raises(
        UsageError, match=r"layers\.\*\.silu:0 is silu\.default in the model .* and no such node in the plan"
    ):
        fitted(other, planned.llama())


def test_a_cut_that_no_longer_divides_is_refused_by_name() -> None:
    torch.manual_seed(0)
    narrow = Llama(LlamaConfig(layers=2, vocabulary=64, width=32, heads=8, kv_heads=2, feed_forward=48))
    plan = planned.plan_for(planned.llama(), Mesh(1, 4))
    with pytest.raises(UsageError, match=r"cuts label .+ of layers\.\*\..* 4 ways and the model to verify has 2"):
        fitted(plan, narrow)


def test_a_large_model_keeps_its_width_and_two_blocks() -> None:
    with torch.device("meta"):
        model = Llama(LlamaConfig(layers=9, width=256, heads=8, kv_heads=8, feed_forward=512))
    small, note = reduced(model, small=10_000)
    assert len(small.get_submodule("layers")) == 2 and len(model.layers) == 9
    assert note == "verified with layers: 2 of 9 blocks at full width"
    assert reduced(model) == (model, "")


def test_a_model_that_stays_too_large_says_what_to_do() -> None:
    with torch.device("meta"):
        model = Llama(LlamaConfig(layers=8, width=16384, heads=128, kv_heads=8, feed_forward=53248))
    with pytest.raises(
        ModelError, match=r"billion parameters with two blocks: too many .* overrides such as width=256"
    ):
        reduced(model)


def test_a_model_function_takes_overrides() -> None:
    def make(layers: int = 12) -> nn.Module:
        return Llama(LlamaConfig(layers=layers))

    made = built(make, {"layers": 3})
    assert len(made.layers) == 3 and next(made.parameters()).is_meta  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="does not take depth"):
        built(make, {"depth": 3})
    with pytest.raises(UsageError, match=r"overrides .* need a function"):
        built(made, {"layers": 3})


def test_weights_that_are_all_alike_are_roughened_and_the_rest_is_kept() -> None:
    model = planned.gpt()
    twin = brought_to_life(model, torch.float64, seed=1)
    theirs = dict(model.named_parameters())
    for name, parameter in twin.named_parameters():
        assert parameter.dtype == torch.float64 and parameter.requires_grad
        assert parameter.numel() == 1 or parameter.std() > 0
        alike = bool((theirs[name] == theirs[name].flatten()[0]).all())
        assert alike or torch.equal(parameter, theirs[name].double())
    assert twin.get_parameter("head.weight") is twin.get_parameter("tokens.weight")


class Nothing(nn.Module):
    """A parameter that nothing initialises."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(8, 4))

    def forward(self, tokens: Tensor) -> Tensor:
        return nn.functional.linear(nn.functional.embedding(tokens, self.table), self.table)


def test_weights_that_nothing_sets_are_named() -> None:
    with torch.device("meta"):
        model = Nothing()
    with pytest.raises(ModelError, match="nothing sets table"):
        brought_to_life(model, torch.float32, seed=1)


def test_a_model_on_meta_verifies_from_a_saved_plan(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = Llama(LlamaConfig(layers=3, vocabulary=64, width=32, heads=4, kv_heads=2, feed_forward=48))
    planned.plan_for(model, Mesh(16, 2), micro_steps=4, recompute="full").save(tmp_path / "plan.json")
    report = verify(model, tmp_path / "plan.json", dtype="float64", steps=0, ranks=2, small=1000)
    assert report.passed, str(report)
    assert report.ranks == 2 and report.micro_steps == 2
    assert report.notes == (
        "verified with layers: 2 of 3 blocks at full width",
        "verified as tp2 in place of dp16 x tp2",
    )


def test_dropout_is_left_out_and_said() -> None:
    torch.manual_seed(0)
    model = planned.GPT(planned.GPTConfig(layers=2, vocabulary=64, width=32, heads=4, context=48, dropout=0.1))
    plan = planned.plan_for(model, Mesh(1, 2), zero=0, tokens=planned.MANY)
    assert "dropout is off" in prepared(model, plan, dtype="float32").notes
    report = verify(model, plan, dtype="float64", steps=0)
    assert report.passed, str(report)


def test_only_dtypes_with_a_tolerance_are_verified() -> None:
    model = planned.llama()
    with pytest.raises(UsageError, match="float32 or float64, not in bfloat16"):
        verify(model, planned.plan_for(model, Mesh(2)), dtype="bfloat16")


class Coarse(nn.Module):
    """Embedding and head with a norm that is computed in float32 whatever comes."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm, self.head = nn.Embedding(50, 16), nn.LayerNorm(16), nn.Linear(16, 50)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        return self.head(self.norm(x) + x.float().sigmoid().to(x.dtype))


@pytest.mark.parametrize(
    ("make", "dtype", "exact"),
    [(Coarse, "float64", "float32"), (Coarse, "float32", "float32"), (planned.llama, "float64", "float64")],
)
def test_a_model_that_casts_down_is_held_to_the_limit_of_float32(make: Any, dtype: str, exact: str) -> None:
    model = make()
    case = prepared(model, planned.plan_for(model, Mesh(2, 1)), dtype=dtype)
    assert case.exact == exact
    assert (exact != dtype) == any("computes in float32 whatever the dtype" in note for note in case.notes)
