"""A folder and a home of their own for tests that find profiles, and a short way to write one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of the test, with no profiles of the account behind it."""
    home = tmp_path / "account"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    work = tmp_path / "project"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


@pytest.fixture
def write(folder: Path) -> Callable[..., Path]:
    """Writes `name`.toml of a kind into ./fourfold-hardware, or into another folder, and returns its path."""

    def write(kind: str, name: str, text: str = "", *, into: str = "fourfold-hardware") -> Path:
        path = folder / into / f"{name}.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'schema = "fourfold.hardware/1"\nkind = "{kind}"\nname = "{name}"\n{text}', encoding="utf-8")
        return path

    return write
