"""Plans of both families on gloo processes equal the plain module: every mesh, ZeRO stage and way to recompute."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import planned
import pytest
import torch
from torch import nn

from fourfold.compiler.capture import capture
from fourfold.compiler.verify import Report, verify
from fourfold.ir.mesh import Mesh

FAMILIES: dict[str, Callable[[], nn.Module]] = {"llama": planned.llama, "gpt": planned.gpt}
MESHES = {
    "dp2": Mesh(2),
    "dp3": Mesh(3),
    "dp4": Mesh(4),
    "tp2": Mesh(1, 2),
    "tp4": Mesh(1, 4),
    "dp2xtp2": Mesh(2, 2),
}
CHOSEN = (
    "llama dp2 0 none 1 float64",
    "llama dp3 2 regions 2 float64",
    "llama tp2 3 none 1 float64",
    "llama tp4 0 full 1 float32",
    "llama dp2xtp2 2 regions 2 float64",
    "gpt dp4 1 full 2 float64",
    "gpt dp2 3 none 2 float32",
    "gpt tp2 1 regions 1 float64",
    "gpt dp2xtp2 3 none 1 float32",
)
"""Family, mesh, ZeRO, recompute, micro-steps, dtype: each word at least once; the rest of the product is slow."""


def verified(case: str, **options: Any) -> Report:
    family, mesh, zero, recompute, micro_steps, dtype = case.split()
    model = FAMILIES[family]()
    plan = planned.plan_for(
        model,
        MESHES[mesh],
        zero=int(zero),
        recompute=recompute,
        micro_steps=int(micro_steps),
        tokens=planned.MANY if zero in "12" else planned.FEW,
    )
    report = verify(model, plan, dtype=dtype, **options)
    assert report.micro_steps >= int(micro_steps)
    return report


@pytest.mark.parametrize("case", CHOSEN)
def test_a_plan_equals_the_plain_module(case: str) -> None:
    report = verified(case, steps=1)
    assert report.passed, str(report)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("zero", [0, 1, 2, 3])
@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_plan_equals_the_plain_module(family: str, mesh: str, zero: int, dtype: str) -> None:
    recompute, micro_steps = ("none", "regions", "full", "regions")[zero], 1 + (zero + len(mesh)) % 2
    report = verified(f"{family} {mesh} {zero} {recompute} {micro_steps} {dtype}")
    assert report.passed, str(report)


def frozen(model: nn.Module, *words: str) -> nn.Module:
    for name, parameter in model.named_parameters():
        parameter.requires_grad = not any(word in name for word in words)
    return model


FROZEN = {
    "a-block": ("layers.0.",),
    "the-embedding": ("embedding", "tokens", "positions"),
    "all-norms-and-biases": ("norm", "bias"),
    "all-but-the-head": ("layers", "embedding", "positions", "norm"),
    "one-of-q-k-v": ("attention.k", "qkv.bias"),
}


@pytest.mark.parametrize(
    ("family", "which", "mesh", "zero"),
    [
        ("llama", "a-block", "dp2", 3),
        ("llama", "the-embedding", "tp2", 2),
        ("gpt", "all-norms-and-biases", "tp2", 1),
        pytest.param("llama", "all-but-the-head", "dp2xtp2", 0, marks=pytest.mark.slow),
        pytest.param("llama", "one-of-q-k-v", "tp2", 3, marks=pytest.mark.slow),
        pytest.param("gpt", "a-block", "tp2", 0, marks=pytest.mark.slow),
        pytest.param("gpt", "the-embedding", "dp2", 2, marks=pytest.mark.slow),
        pytest.param("gpt", "all-but-the-head", "dp3", 1, marks=pytest.mark.slow),
        pytest.param("gpt", "one-of-q-k-v", "dp2", 3, marks=pytest.mark.slow),
    ],
)
def test_frozen_parameters_have_neither_gradient_nor_state(family: str, which: str, mesh: str, zero: int) -> None:
    made = {"llama": planned.llama.__wrapped__, "gpt": planned.gpt.__wrapped__}[family]()
    model = frozen(made, *FROZEN[which])
    plan = planned.plan_for(model, MESHES[mesh], zero=zero, recompute="full" if zero == 3 else "none", micro_steps=2)
    report = verify(model, plan, dtype="float64", steps=2)
    assert report.passed, str(report)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    shown = {check.name.split("[")[0] for check in report.checks if check.kind == "gradient"}
    assert shown == trained


@pytest.mark.parametrize("name", ["qk-norm", pytest.param("multi-query", marks=pytest.mark.slow)])
def test_what_every_tensor_rank_holds_gets_the_whole_gradient(name: str, models: Any) -> None:
    model = models[name]()
    plan = planned.plan_for(model, Mesh(1, 2), zero=0, tokens=planned.MANY)
    report = verify(model, plan, dtype="float64", steps=1)
    assert report.passed, str(report)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["tp2", "dp2"])
def test_every_way_to_write_a_model(mesh: str, accepted: Callable[[], nn.Module]) -> None:
    model = accepted()
    report = verify(model, planned.plan_for(model, MESHES[mesh], zero=3, tokens=planned.MANY), dtype="float64", steps=1)
    wrong = [check for check in report.failures if check.name != "left uncut of block weights"]
    assert not wrong, str(report)


def test_a_bfloat16_plan_is_the_same_in_float32_and_float64() -> None:
    """Casts come and go with the dtype; every other cut is kept."""
    model = planned.llama()
    plan = planned.plan_for(model, Mesh(1, 2), tokens=planned.MANY)
    assert any(n.op == "cast" for n in plan.graph.blocks["layers.*"].nodes)
    assert not any(n.op == "cast" for n in capture(model, torch.float64).blocks["layers.*"].nodes)
    assert verify(model, plan, dtype="float64", steps=0).passed


def test_a_report_names_every_tensor_and_reads_as_json() -> None:
    model = planned.gpt()
    report = verify(model, planned.plan_for(model, Mesh(2)), steps=0)
    text, data = str(report), json.loads(json.dumps(report.plain()))
    assert data["passed"] is True
    names = [name for name, _ in model.named_parameters()]
    assert all(name in text for name in names)
    assert text.count("layers.0.attention.qkv.weight[") == 3
    assert report.verdict in text and report.worst.name in report.verdict
    assert not replace(report, checks=(replace(report.checks[0], error=float("nan")),)).passed
    assert not replace(report, checks=()).passed
