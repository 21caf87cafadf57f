"""Weights as transformers keeps them: into shards under any layout and out again, equal; others' are refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import planned
import pytest
import torch
from torch import nn

from fourfold.backends.communication import processes
from fourfold.backends.program import Options, Program
from fourfold.backends.weights import pretrained, pretrained_save
from fourfold.backends.weights.boxes import Box
from fourfold.backends.weights.parts import local
from fourfold.compiler.capture import capture
from fourfold.compiler.schedules import Scheduled
from fourfold.hardware.errors import FourfoldError, RunError, UsageError
from fourfold.ir.graph import Graph
from fourfold.ir.mesh import Mesh
from fourfold.ir.plan import Plan, Precision

transformers = pytest.importorskip("transformers")

SIZES = {"vocab_size": 62, "hidden_size": 20, "intermediate_size": 34, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("Qwen3", {**SIZES, **HEADS, "head_dim": 6}),
    "tied": ("Qwen3", {**SIZES, **HEADS, "head_dim": 6, "tie_word_embeddings": True}),
    "llama": ("Llama", {**SIZES, **HEADS, "hidden_size": 24, "attention_bias": True}),
    # Fused q, k, v and gate, up: parts in a program, whole in a file.
    "fused": ("Phi3", {**SIZES, **HEADS, "hidden_size": 24, "pad_token_id": None, "eos_token_id": None}),
}
MESHES = {
    "dp2": (Mesh(2, 1), 3),
    "tp2": (Mesh(1, 2), 0),
    "dp2xtp2": (Mesh(2, 2), 3),
    "dp3": (Mesh(3, 1), 1),
    "pp2": (Mesh(pp=2), 1),
    "pp2xtp2": (Mesh(pp=2, tp=2), 0),
    "dp2xpp2": (Mesh(dp=2, pp=2), 3),
}


def made(family: str, *, seed: int = 0, meta: bool = False, **changes: Any) -> Any:
    name, fields = FAMILIES[family]
    torch.manual_seed(seed)
    config = getattr(transformers, f"{name}Config")(**{**fields, **changes})
    with torch.device("meta" if meta else "cpu"):
        model = getattr(transformers, f"{name}ForCausalLM")(config)
    for parameter in model.parameters():
        if not meta and parameter.dim() == 1:
            parameter.data += 0.1 * torch.randn(parameter.shape)
    return model


def plan_of(graph: Graph, mesh: str) -> Plan:
    shape, zero = MESHES[mesh]
    stages: dict[str, Any] = {"schedule": "1f1b", "bounds": (2,)} if shape.pp > 1 else {}
    return planned.plan_for(graph, shape, zero=zero, precision=Precision.fp32, bucket=8, **stages)


def on_ranks(work: Callable[[Program], Any], family: str, mesh: str, *, meta: bool = True) -> tuple[Any, ...]:
    """What `work(program)` returned on every rank."""
    graph = capture(made(family, meta=True), torch.float32)
    plan = plan_of(graph, mesh)
    return processes.run(partial(on_one, work, family, meta, plan, graph), plan.mesh.ranks)


def on_one(work: Callable[[Program], Any], family: str, meta: bool, plan: Plan, graph: Graph, rank: int) -> Any:
    return work(Program(made(family, seed=9, meta=meta), plan, graph, Options(), Scheduled.of(plan)))


def loaded(folder: Path, program: Program) -> Any:
    program.load_pretrained(folder)
    return {name: value.tolist() for name, value in program.full_state_dict(everywhere=True).items()}


def passed_on(folder: Path, out: Path, file_bytes: float, program: Program) -> float:
    program.load_pretrained(folder)
    program.save_pretrained(out, file_bytes=file_bytes)
    return program.evaluate([list(range(20)), [5, 6, 7]])


def refused(folder: Path, program: Program) -> str:
    try:
        program.load_pretrained(folder)
    except FourfoldError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


@pytest.mark.parametrize("mesh", [name for name in MESHES if "pp" not in name])
@pytest.mark.parametrize("family", ["tied", "fused"])
def test_loaded_under_any_layout_it_is_the_model_that_was_saved(family: str, mesh: str, tmp_path: Path) -> None:
    model = made(family)
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    wanted = {name: value.tolist() for name, value in model.state_dict().items()}
    for found in on_ranks(partial(loaded, tmp_path), family, mesh):
        assert found == wanted


def test_a_rank_reads_what_it_keeps_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = made("qwen3")
    model.save_pretrained(tmp_path)
    read: list[int] = []
    whole = pretrained.Folder.read

    def counted(self: pretrained.Folder, key: str, box: Box) -> torch.Tensor:
        found = whole(self, key, box)
        read.append(found.numel())
        return found

    def work(program: Program) -> tuple[int, int]:
        program.load_pretrained(tmp_path)
        return sum(read), sum(local(p).numel() for p in program.parameters())

    monkeypatch.setattr(pretrained.Folder, "read", counted)
    found = on_ranks(work, "qwen3", "dp2xtp2")
    # Norms are held by both ranks of the tensor axis: all else is read once.
    size = sum(p.numel() for p in model.parameters())
    assert all(count == kept for count, kept in found) and sum(count for count, _ in found) < 1.05 * size


@pytest.mark.parametrize("file_bytes", [1e9, 6000.0], ids=["one-file", "several"])
@pytest.mark.parametrize("family", FAMILIES)
def test_saved_from_tp2_transformers_opens_it_with_equal_logits(family: str, file_bytes: float, tmp_path: Path) -> None:
    model = made(family)
    model.save_pretrained(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "model-00001-of-00009.safetensors").write_text("left by an older save")
    losses = on_ranks(partial(passed_on, tmp_path / "a", tmp_path / "b", file_bytes), family, "tp2")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "b")
    assert type(again) is type(model) and again.dtype == torch.float32
    tokens = torch.arange(20)[None]
    assert torch.equal(again(tokens).logits, model(tokens).logits)
    assert len(set(losses)) == 1
    files = {path.name for path in (tmp_path / "b").glob("*.safetensors*")}
    many = {f"model-{i:05}-of-{len(files) - 1:05}.safetensors" for i in range(1, len(files))}
    assert files == ({"model.safetensors"} if file_bytes == 1e9 else {"model.safetensors.index.json", *many})


@pytest.mark.parametrize(
    "family", ["tied", pytest.param("qwen3", marks=pytest.mark.slow), pytest.param("fused", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("mesh", ["dp2xtp2", "pp2", "pp2xtp2", "dp2xpp2"])
def test_the_program_computes_what_the_model_does(family: str, mesh: str, tmp_path: Path) -> None:
    model = made(family)
    model.save_pretrained(tmp_path / "a")
    losses = on_ranks(partial(passed_on, tmp_path / "a", tmp_path / "b", 6000.0), family, mesh)
    documents = [torch.arange(20), torch.tensor([5, 6, 7])]
    total = sum(model(d[None], labels=d[None]).loss.item() * (len(d) - 1) for d in documents)
    assert losses == pytest.approx([total / 21] * len(losses), rel=1e-5)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "b")
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())


def test_written_in_another_dtype(tmp_path: Path) -> None:
    def work(program: Program) -> None:
        program.init(3)
        program.save_pretrained(tmp_path, dtype=torch.bfloat16)

    on_ranks(work, "qwen3", "dp2")
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["dtype"], config["architectures"]) == ("bfloat16", ["Qwen3ForCausalLM"])
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert {p.dtype for p in again.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 1}, ("has no tensor 'model.layers.1.", "11 missing")),
        ({"num_hidden_layers": 3}, ("holds 'model.layers.2.", "which this model has not")),
        ({"intermediate_size": 36}, ("mlp.gate_proj.weight is [34, 20] here and [36, 20] there",)),
    ],
)
def test_weights_of_another_model_are_refused_on_every_rank(
    changes: dict[str, Any], words: tuple[str, ...], tmp_path: Path
) -> None:
    made("qwen3", **changes).save_pretrained(tmp_path)
    for text in on_ranks(partial(refused, tmp_path), "qwen3", "tp2"):
        assert text.startswith("RunError") and all(word in text for word in words), text


def test_a_folder_without_weights_and_a_damaged_file_are_refused(tmp_path: Path) -> None:
    assert "holds neither model.safetensors nor" in on_ranks(partial(refused, tmp_path), "qwen3", "tp2")[1]
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    assert "model.safetensors cannot be read" in on_ranks(partial(refused, tmp_path), "qwen3", "tp2")[1]


def test_what_only_another_stage_holds_is_written_too(tmp_path: Path) -> None:
    """Stages of a pipeline hold a part of the model each; rank 0 writes all of it."""
    model = made("tied")
    graph = capture(model, torch.float32)

    def work(rank: int) -> None:
        root = copy.deepcopy(model)
        root.model.layers[1 - rank] = nn.Identity()
        if rank == 0:
            root.model.norm = nn.Identity()
        form = pretrained_save.Form(None, 8000.0)
        pretrained_save.save(tmp_path, root, graph, made("tied", meta=True), gather=lambda _, part: part, form=form)

    processes.run(work, 2)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())


def test_a_model_without_a_config_cannot_be_saved_so(tmp_path: Path) -> None:
    model = planned.llama()
    plan = planned.plan_for(capture(model, torch.float32), Mesh(1, 2), precision=Precision.fp32)

    def work(rank: int) -> None:
        program = Program(model, plan, plan.graph, Options())
        program.init()
        program.save_pretrained(tmp_path)

    with pytest.raises(UsageError, match="Llama has no config of transformers"):
        processes.run(work, 2)


def test_a_file_that_cannot_be_written_is_told_to_every_rank(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.part").mkdir()

    def work(program: Program) -> str:
        program.init()
        try:
            program.save_pretrained(tmp_path)
        except RunError as error:
            return str(error)
        return "nothing"

    assert all("could not be written" in text for text in on_ranks(work, "qwen3", "dp2"))
