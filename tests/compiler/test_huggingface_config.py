"""Models from a config of transformers: fields, overrides, the small form, and what is said when it is no config."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fourfold.compiler.models import from_reference
from fourfold.compiler.models.huggingface import from_config
from fourfold.hardware.errors import ModelError, UsageError

transformers = pytest.importorskip("transformers")

QWEN = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 1000,
    "hidden_size": 96,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "bos_token_id": 999,
    "torch_dtype": "bfloat16",
    "rope_theta": 1000000,
    "tie_word_embeddings": True,
}


def described(model: Any) -> tuple[Any, ...]:
    c = model.config
    return c.num_hidden_layers, c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim, c.vocab_size


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(QWEN), encoding="utf-8")
    return tmp_path


def test_a_file_its_folder_and_an_object_are_one_model(folder: Path) -> None:
    config = transformers.Qwen3Config(**{k: v for k, v in QWEN.items() if k != "torch_dtype"})
    with torch.device("meta"):
        models = [from_reference(str(folder)), from_reference(str(folder / "config.json")), from_config(config)]
    for model in models:
        assert type(model).__name__ == "Qwen3ForCausalLM" and described(model) == (4, 96, 8, 2, 32, 1000)
        assert all(p.is_meta and p.dtype == torch.float32 for p in model.parameters())
        assert model.config.rope_parameters["rope_theta"] == 1000000


def test_overrides_and_what_follows_from_them(folder: Path) -> None:
    changed = from_reference(str(folder), {"num_hidden_layers": 2, "hidden_size": 64})
    assert described(changed) == (2, 64, 8, 2, 32, 1000) and len(changed.config.layer_types) == 2
    deeper = from_reference(str(folder), {"num_hidden_layers": 5, "vocab_size": 10, "bos_token_id": None})
    assert described(deeper)[0] == 5 == len(deeper.model.layers)


def test_the_width_of_a_head_follows_where_the_heads_fill_the_model() -> None:
    config = transformers.LlamaConfig(hidden_size=64, num_attention_heads=4, vocab_size=32, num_hidden_layers=1)
    assert described(from_config(config, {"hidden_size": 32})) == (1, 32, 4, 4, 8, 32)


def test_the_small_form_keeps_the_kind(folder: Path) -> None:
    small = from_reference(str(folder), {"intermediate_size": 40}, small=True)
    assert described(small) == (2, 80, 4, 2, 16, 256) and small.config.intermediate_size == 40
    assert small.lm_head.weight is small.model.embed_tokens.weight
    assert sum(p.numel() for p in small.parameters()) < 100_000


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, ("cannot be read", "config.json")),
        ("{", ("is not JSON",)),
        ("[1]", ("says no model_type",)),
        ('{"model_type": "nonesuch"}', ("'nonesuch'", "does not know")),
    ],
)
def test_what_is_no_config_is_said(tmp_path: Path, text: str | None, words: tuple[str, ...]) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError) as found:
        from_reference(str(tmp_path))
    assert all(word in str(found.value) for word in words), found.value


def test_an_unknown_field_and_an_impossible_one(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"no field called 'layers'; did you mean .*num_hidden_layers"):
        from_reference(str(folder), {"layers": 2})
    with pytest.raises(ModelError, match="transformers cannot build"):
        from_reference(str(folder), {"hidden_act": "nonesuch"})


def test_a_model_that_ships_is_not_looked_for_among_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gpt2").mkdir()
    monkeypatch.chdir(tmp_path)
    with torch.device("meta"):
        found = from_reference("gpt2")
    assert type(found).__name__ == "GPT"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("plan", "--hardware", "dgx-h100", "--set", "num_hidden_layers=3"), "model.layers.* x3"),
        (("verify", "--pin", "dp=2", "--pin", "tp=2", "--set", "intermediate_size=40"), "passed: worst tensor model."),
    ],
)
def test_the_command_line_takes_a_folder(folder: Path, words: tuple[str, ...], said: str) -> None:
    root = Path(__file__).resolve().parents[2]
    command, *options = words
    line = [sys.executable, "-m", "fourfold", command, str(folder), *options]
    answer = subprocess.run(line, cwd=root / "src", capture_output=True, text=True)
    assert answer.returncode == 0 and said in answer.stdout, answer.stdout + answer.stderr


def test_fourfold_runs_without_importing_transformers() -> None:
    root = Path(__file__).resolve().parents[2]
    code = (
        "import sys; sys.path.insert(0, 'src'); import fourfold as ff, torch;"
        "from fourfold.compiler.models import from_reference\n"
        "with torch.device('meta'): ff.capture(from_reference('gpt2', small=True))\n"
        "import fourfold.backends.program; assert not {'transformers', 'safetensors'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
