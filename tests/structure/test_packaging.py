"""One package installs, named fourfold: the folders at the root are reached through links, never by their own names."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import fourfold

FOLDERS = ("backends", "compiler", "costmodel", "hardware", "ir", "passes")
DATA = (".toml", ".txt", ".csv")


def python(code: str, *, folder: Path, path: Path) -> str:
    """What a fresh interpreter prints when it runs `code` in `folder` with `path` on its search path."""
    environment = {**os.environ, "PYTHONPATH": str(path)}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, text=True).stdout


def test_fourfold_is_the_one_under_src(root: Path) -> None:
    assert fourfold.__file__ is not None
    assert Path(fourfold.__file__).resolve() == root / "src" / "fourfold" / "__init__.py"


@pytest.mark.parametrize("folder", FOLDERS)
def test_links_are_relative_and_lead_to_the_root(folder: str, root: Path) -> None:
    link = root / "src" / "fourfold" / folder
    assert os.readlink(link) == f"../../{folder}"
    assert link.resolve() == root / folder


def test_every_folder_imports_as_part_of_fourfold_only(root: Path, tmp_path: Path) -> None:
    """From another folder, each resolves inside fourfold; none is importable or imported under its own name."""
    code = f"""
import importlib, importlib.util, sys
import fourfold
for name in {FOLDERS}:
    importlib.import_module(f"fourfold.{{name}}")
print([name for name in {FOLDERS} if name in sys.modules or importlib.util.find_spec(name)])
"""
    assert python(code, folder=tmp_path, path=root / "src").strip() == "[]"


def test_no_test_imported_a_folder_by_its_own_name() -> None:
    assert [name for name in FOLDERS if name in sys.modules] == []


def test_every_folder_with_python_files_is_a_package(root: Path) -> None:
    """A folder without __init__.py would be left out of the wheel in silence."""
    holding = {path.parent for folder in FOLDERS for path in (root / folder).rglob("*.py")}
    assert [str(path.relative_to(root)) for path in sorted(holding) if not (path / "__init__.py").exists()] == []


def test_every_other_file_is_package_data(root: Path) -> None:
    """A file that is neither Python nor of a kind pyproject.toml lists would be left out of the wheel in silence."""
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert settings["package-data"]["*"] == [f"**/*{suffix}" for suffix in DATA]
    wrong = [
        str(path.relative_to(root))
        for folder in FOLDERS
        for path in sorted((root / folder).rglob("*"))
        if path.is_file() and path.suffix not in (".py", ".pyc", *DATA)
    ]
    assert not wrong, wrong


def test_what_is_installed_is_one_package() -> None:
    try:
        installed = metadata.distribution("fourfold")
    except metadata.PackageNotFoundError:
        pytest.skip("fourfold is not installed here: it runs from src")
    assert (installed.read_text("top_level.txt") or "").split() == ["fourfold"]


@pytest.mark.slow
def test_the_wheel_holds_every_file_under_fourfold(root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    ignored = shutil.ignore_patterns(".*", "build", "dist", "runs", "*.egg-info", "__pycache__", "tests")
    shutil.copytree(root, copy, symlinks=True, ignore=ignored)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", str(tmp_path)]
    subprocess.run([*command, str(copy)], check=True)
    (wheel,) = tmp_path.glob("fourfold-*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = [path for folder in FOLDERS for path in (copy / folder).rglob("*") if path.suffix in (".py", *DATA)]
    expected = {f"fourfold/{path.relative_to(copy).as_posix()}" for path in files}
    front = {"fourfold/__init__.py", "fourfold/__main__.py", "fourfold/py.typed"}
    assert packed == expected | {name for name in front if (copy / "src" / name).exists()}
