"""The repository as the structure tests read it: Python files parsed once, and text files."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PRODUCT = ("hardware", "ir", "costmodel", "passes", "backends", "compiler")
AROUND = ("src/fourfold", "tests", "examples", "benchmarks", "scripts")


@dataclass(frozen=True, slots=True)
class Source:
    """One Python file: where it stands in the repository, the module it is (product files only), text and tree."""

    path: str
    module: str | None
    text: str
    tree: ast.Module


def _module(path: Path) -> str | None:
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] == "src":
        parts = parts[2:]
    elif parts[0] not in PRODUCT:
        return None
    return ".".join(("fourfold", *parts)).removesuffix(".__init__")


def _files() -> Iterator[Path]:
    for folder in (*PRODUCT, *AROUND):
        # rglob does not follow links, so what src/fourfold links to is read once, from the root.
        yield from sorted((ROOT / folder).rglob("*.py"))


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def sources() -> tuple[Source, ...]:
    """Every Python file of the repository."""
    return tuple(
        Source(
            path=path.relative_to(ROOT).as_posix(),
            module=_module(path),
            text=(text := path.read_text(encoding="utf-8")),
            tree=ast.parse(text, filename=str(path)),
        )
        for path in _files()
    )


@pytest.fixture(scope="session")
def product(sources: tuple[Source, ...]) -> tuple[Source, ...]:
    """The files that install: the six folders and src/fourfold."""
    return tuple(source for source in sources if source.module)
