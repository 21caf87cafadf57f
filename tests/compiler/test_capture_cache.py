"""A captured graph is read again for the same model, and for no other."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fourfold.compiler import capture as capturing
from fourfold.compiler.capture import cache
from fourfold.compiler.capture.describe import describe
from fourfold.compiler.models.llama import Llama, LlamaConfig

SOURCE = """
from torch import nn
from {helper} import act
class Model(nn.Module):
    def __init__(self, how=None):
        super().__init__()
        self.inner, self.how = nn.Linear(4, 4), how
    def forward(self, x):
        return act(self.inner(x))
"""


def key(model: nn.Module, dtype: torch.dtype = torch.float32, *, training: bool = True) -> str:
    return cache.key(model, dtype, training=training)


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Loads the user's file with another version of the file it imports."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def loaded(helper: str) -> ModuleType:
        (tmp_path / "helper_of_mine.py").write_text(helper)
        (tmp_path / "model_of_mine.py").write_text(SOURCE.format(helper="helper_of_mine"))
        for name in ("helper_of_mine", "model_of_mine"):
            spec = importlib.util.spec_from_file_location(name, tmp_path / f"{name}.py")
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            monkeypatch.setitem(sys.modules, name, module)
            exec(compile((tmp_path / f"{name}.py").read_text(), str(tmp_path / f"{name}.py"), "exec"), vars(module))
        return sys.modules["model_of_mine"]

    return loaded


def test_a_second_capture_exports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "folder", lambda: tmp_path)
    model = Llama(LlamaConfig(layers=1, width=32, feed_forward=48))
    first = capturing.capture(model)
    monkeypatch.setattr(capturing, "exported", lambda *args, **kwargs: pytest.fail("exported again"))
    assert capturing.capture(model) == first


def test_a_damaged_file_counts_as_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "folder", lambda: tmp_path)
    (tmp_path / "broken.json").write_text('{"name": "x", "blocks"')
    assert cache.read("broken") is None and cache.read("missing") is None


def test_what_changes_the_graph_changes_the_key(load: Callable[[str], ModuleType]) -> None:
    make = load("from torch import relu as act").Model
    frozen = make()
    frozen.inner.weight.requires_grad_(False)
    found = [
        key(make()),
        key(make(), torch.bfloat16),
        key(make(), training=False),
        key(make(how=3)),
        key(make(how=lambda x: x + 1)),
        key(make(how=lambda x: x + 2)),
        key(make(how=F.gelu)),
        key(make(how={"rate": [1, 2]})),
        key(frozen),
    ]
    assert len(set(found)) == len(found)
    assert key(make()) == found[0]
    assert key(load("from torch import sigmoid as act").Model()) != found[0]


def test_what_does_not_change_the_graph_keeps_the_key(load: Callable[[str], ModuleType]) -> None:
    make = load("from torch import relu as act").Model
    model = make()
    before = key(model)
    nn.init.zeros_(model.inner.weight)
    assert key(model) == before


def test_closures_and_objects_are_told_apart() -> None:
    class Config:
        def __init__(self, width: int) -> None:
            self.width = width

    def scaled(by: int) -> Callable[[int], int]:
        return lambda x: x * by

    assert describe(Config(3)) == describe(Config(3)) != describe(Config(4))
    assert describe(scaled(3)) == describe(scaled(3)) != describe(scaled(4))
