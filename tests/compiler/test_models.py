"""Shipped models by name, and models of the user's own by file and function."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from fourfold.compiler.models import SHIPPED, from_reference, shipped, tiny
from fourfold.hardware.errors import ModelError, UsageError

BILLIONS = {
    "llama-1b": 1.236, "llama-3b": 3.213, "llama-8b": 8.030, "llama-70b": 70.55, "llama-405b": 405.9,
    "gpt2": 0.1244, "gpt-1.3b": 1.32, "gpt-22b": 22.1, "gpt-175b": 174.6, "gpt-530b": 529.6, "gpt-1t": 1008.0,
}  # fmt: skip

SOURCE = """
from torch import nn
import beside

def small(width=8, *, layers=1):
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))

def nothing():
    return 3

def a_class():
    return nn.Linear

def broken():
    return [][1]

class Model(nn.Linear):
    def __init__(self, width=4):
        super().__init__(width, width)
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "beside.py").write_text("")
    (tmp_path / "mine.py").write_text(SOURCE)
    return tmp_path / "mine.py"


@pytest.mark.parametrize("name", SHIPPED)
def test_sizes_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        model = shipped(name)()
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(BILLIONS[name], rel=0.01)


@pytest.mark.parametrize("name", SHIPPED)
def test_tiny_forms_are_tiny_and_alike(name: str) -> None:
    model, large = tiny(name)(), SHIPPED[name]
    assert sum(p.numel() for p in model.parameters()) < 1_000_000
    assert type(model.config) is type(large) and model.config.tied == large.tied  # type: ignore[union-attr]


def test_overrides_change_sizes() -> None:
    with torch.device("meta"):
        assert len(from_reference("llama-8b", {"layers": 3}).layers) == 3  # type: ignore[arg-type]
    assert from_reference("gpt2", {"width": 64}, small=True).config.width == 64  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "overrides", "words"),
    [
        ("llama8b", {}, ("llama-8b", "file.py:function")),
        ("zzz", {}, ("llama-8b", "gpt-1t")),
        ("llama-8b", {"depth": 3}, ("'depth'", "layers")),
        ("llama-8b", {"heads": 7}, ("7 heads", "width 4096")),
        ("nowhere.py:make", {}, ("nowhere.py is not a file",)),
        ("{file}", {}, ("names no function",)),
        ("{file}:smal", {}, ("no function 'smal'", "small")),
        ("{file}:small", {"depth": 3}, ("(width=8, *, layers=1)", "'depth'")),
    ],
)
def test_what_is_not_there_is_said(text: str, overrides: dict[str, int], words: tuple[str, ...], file: Path) -> None:
    with pytest.raises(UsageError) as found:
        from_reference(text.format(file=file), overrides)
    assert all(word in str(found.value) for word in words) and "\n" not in str(found.value), found.value


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("nothing", ("returned int", "torch.nn.Module")),
        ("a_class", ("class Linear", "instance")),
        ("broken", ("mine.py:15", "IndexError")),
    ],
)
def test_a_function_that_makes_no_model_is_said(function: str, words: tuple[str, ...], file: Path) -> None:
    with pytest.raises(ModelError) as found:
        from_reference(f"{file}:{function}")
    assert all(word in str(found.value) for word in words), found.value


def test_a_file_that_does_not_load_is_said(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("import torch\nimport not_there\n")
    with pytest.raises(ModelError, match=r"bad\.py failed at bad\.py:2: ModuleNotFoundError"):
        from_reference(f"{tmp_path / 'bad.py'}:make")


def test_a_function_or_a_class_of_a_file_is_called(file: Path) -> None:
    assert len(from_reference(f"{file}:small", {"layers": 2})) == 2  # type: ignore[arg-type]
    assert isinstance(from_reference(f"{file}:Model", {"width": 3}), nn.Linear)
