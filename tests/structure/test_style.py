"""The measurable part of the house style (CONTRIBUTING.md). An exception is named here, and the list only shrinks."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FILE_LINES = 300
FUNCTION_LINES = 50
VAGUE = {"base", "common", "helper", "helpers", "manager", "managers", "misc", "util", "utils"}

# Path, or path::function, that may break one of the two lengths, with the reason. Empty is how it should be.
EXCEPTIONS: dict[str, str] = {}

# Settings reach the command line only. What is not a setting may be read in one named file.
READS_ENVIRONMENT = {
    "compiler/cli/": "settings",
    "backends/communication/ranks.py": "torchrun tells a process who it is by RANK, LOCAL_RANK and WORLD_SIZE",
}

# No text of the repository says these. A pattern is written so that it does not match itself.
BANNED = {
    "a path of one machine": re.compile(r"(?<![\w.~}])/(?:work|root|home|Users|mnt)/\w"),
    "a path outside the repository": re.compile(r"\.\./[s]hared\b"),
    "a banner": re.compile(r"^\s*#\s?[-=#*~]{4,}", re.MULTILINE),
    "work left undone": re.compile(r"\b(?:TO[D]O|FIX[M]E|X{3}|HAC[K])\b"),
}
TEXTS = ("*.py", "*.md", "*.toml", "*.txt", "*.csv", "*.json", "*.yaml", "*.yml")
PRODUCT = ("hardware", "ir", "costmodel", "passes", "backends", "compiler", "src")
AROUND = ("tests", "examples", "benchmarks", "scripts", "docs", ".ci")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def unannotated(function: Function, *, method: bool) -> list[str]:
    """The arguments of a function without a type, and 'return'; a method's first argument needs none."""
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args]
    static = any(isinstance(node, ast.Name) and node.id == "staticmethod" for node in function.decorator_list)
    named = named[1:] if method and not static else named
    rest = [argument for argument in (arguments.vararg, arguments.kwarg) if argument]
    missing = [argument.arg for argument in (*named, *arguments.kwonlyargs, *rest) if argument.annotation is None]
    return missing + (["return"] if function.returns is None else [])


def missing_types(tree: ast.AST) -> list[str]:
    """'function: argument, ...' for each function that is not wholly annotated."""
    methods = {id(item) for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for item in node.body}
    found = ((function.name, unannotated(function, method=id(function) in methods)) for function in functions(tree))
    return [f"{name}: {', '.join(missing)}" for name, missing in found if missing]


def reads_environment(tree: ast.AST) -> bool:
    """Whether a file reads environment variables."""
    return any(
        isinstance(node, ast.Attribute)
        and node.attr in ("environ", "getenv")
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
        for node in ast.walk(tree)
    )


def texts(root: Path) -> Iterator[Path]:
    """Every text file of the repository: what the folders hold, and what lies at the root."""
    for folder in (root / name for name in (*PRODUCT, *AROUND)):
        yield from (path for pattern in (*TEXTS, "run") for path in sorted(folder.rglob(pattern)))
    yield from (path for path in sorted(root.iterdir()) if path.is_file() and path.name != ".git")


def test_files_are_short(sources: tuple[Any, ...]) -> None:
    counts = {source.path: source.text.count("\n") for source in sources if source.path not in EXCEPTIONS}
    wrong = [f"{path} has {count} lines, {FILE_LINES} at most" for path, count in counts.items() if count > FILE_LINES]
    assert not wrong, "\n".join(wrong)


def test_functions_are_short(sources: tuple[Any, ...]) -> None:
    lengths = {
        f"{source.path}::{function.name}": (function.end_lineno or 0) - function.lineno + 1
        for source in sources
        for function in functions(source.tree)
    }
    wrong = [
        f"{name} has {length} lines, {FUNCTION_LINES} at most"
        for name, length in lengths.items()
        if length > FUNCTION_LINES and name not in EXCEPTIONS
    ]
    assert not wrong, "\n".join(wrong)


def test_every_function_is_annotated(sources: tuple[Any, ...]) -> None:
    wrong = [f"{source.path}: {text}" for source in sources for text in missing_types(source.tree)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("def f(a, *b: int) -> None: ...", ["f: a"]),
        ("class A:\n    def f(self, *, b): ...", ["f: b, return"]),
        ("class A:\n    @staticmethod\n    def f(a) -> None: ...", ["f: a"]),
        ("class A:\n    def f(self, b: int) -> None: ...", []),
    ],
)
def test_a_missing_annotation_is_seen(text: str, missing: list[str]) -> None:
    assert missing_types(ast.parse(text)) == missing


def test_nothing_says_global(sources: tuple[Any, ...]) -> None:
    wrong = [source.path for source in sources if any(isinstance(node, ast.Global) for node in ast.walk(source.tree))]
    assert not wrong, wrong


def test_names_say_what_is_inside(sources: tuple[Any, ...]) -> None:
    """No file or folder is called after nothing: utils, helpers, common, base, manager."""
    wrong = [
        source.path
        for source in sources
        if VAGUE & {word for part in source.path.removesuffix(".py").split("/") for word in part.split("_")}
    ]
    assert not wrong, wrong


def test_only_the_command_line_reads_the_environment(product: tuple[Any, ...]) -> None:
    wrong = [
        source.path
        for source in product
        if reads_environment(source.tree) and not source.path.startswith(tuple(READS_ENVIRONMENT))
    ]
    assert not wrong, wrong


@pytest.mark.parametrize("what", BANNED)
def test_no_text_names(what: str, root: Path) -> None:
    wrong = [
        f"{path.relative_to(root)}:{text.count(chr(10), 0, found.start()) + 1}: {found[0].strip()}"
        for path in texts(root)
        for text in (path.read_text(encoding="utf-8", errors="replace"),)
        for found in BANNED[what].finditer(text)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("a path of one machine", "open('" + "/home" + "/me/plan.json')"),
        ("a path outside the repository", "read(" + "'../" + "shared/x.csv')"),
        ("a banner", "    # " + "-" * 20),
        ("work left undone", "# TO" + "DO later"),
    ],
)
def test_a_planted_text_is_seen(what: str, text: str) -> None:
    assert BANNED[what].search(text)


def test_exceptions_still_exist(root: Path) -> None:
    assert [name for name in EXCEPTIONS if not (root / name.split("::")[0]).exists()] == []
