"""The import law: import only downwards, siblings never meet, no cycles of modules or of folders, each third-party
library in its place."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import networkx as nx
import pytest

STOREYS = (("hardware",), ("ir", "costmodel"), ("passes", "backends"), ("compiler",))
STOREY = {folder: level for level, folders in enumerate(STOREYS) for folder in folders}

# A library on the left is imported only below one of the prefixes on the right.
ONLY_IN = {
    "ortools": ("fourfold.passes",),
    "triton": ("fourfold.backends.kernels",),
    "rich": ("fourfold.compiler.cli",),
    "typer": ("fourfold.compiler.cli",),
    "transformers": ("fourfold.compiler.models.huggingface",),
    "safetensors": ("fourfold.backends",),
    "torch": ("fourfold.ir", "fourfold.passes", "fourfold.backends", "fourfold.compiler"),
    "torch.distributed": ("fourfold.backends",),
}


def imports(tree: ast.AST) -> Iterator[str]:
    """Every dotted name a file imports, wherever it stands: statements, import_module(...), torch.distributed."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=module, names=names, level=0):
                yield from (f"{module}.{alias.name}" for alias in names)
            case ast.ImportFrom():
                yield "a relative import"
            case ast.Call(func=ast.Name("import_module" | "__import__") | ast.Attribute(attr="import_module")):
                yield from (argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant))
            case ast.Attribute(value=ast.Name("torch"), attr="distributed"):
                yield "torch.distributed"


def below(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def broken(module: str, name: str) -> str | None:
    """The rule that `module` breaks by importing `name`, or None. The front (fourfold itself) may import all."""
    if name == "a relative import":
        return "imports are absolute"
    for library, places in ONLY_IN.items():
        if below(name, library) and not any(below(module, place) for place in places):
            return f"{library} only in {', '.join(places)}"
    folder, other = (*module.split("."), "", "")[1], (*name.split("."), "", "")[1]
    if not below(name, "fourfold") or folder not in STOREY or other == folder:
        return None
    if other not in STOREY:
        return "the front is imported by nothing below it"
    if STOREY[other] == STOREY[folder]:
        return "siblings on a storey never import each other"
    return "import only downwards" if STOREY[other] > STOREY[folder] else None


def test_every_import_obeys_the_law(product: tuple[Any, ...]) -> None:
    wrong = [
        f"{source.path} imports {name}: {rule}"
        for source in product
        for name in sorted(set(imports(source.tree)))
        if (rule := broken(source.module, name))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("module", "text", "rule"),
    [
        ("fourfold.hardware.units", "from fourfold.ir.graph import Graph", "import only downwards"),
        ("fourfold.hardware.units", "def f():\n    import fourfold.ir", "import only downwards"),
        ("fourfold.ir.plan", "from fourfold import costmodel", "siblings on a storey never import each other"),
        ("fourfold.passes.cuts", "import_module('fourfold.backends.lowering.lower')", "siblings on a storey never"),
        ("fourfold.ir.plan", "import fourfold", "the front is imported by nothing below it"),
        ("fourfold.ir.plan", "from . import graph", "imports are absolute"),
        ("fourfold.compiler.pipeline", "from ortools.sat.python import cp_model", "ortools only in"),
        ("fourfold.compiler.pipeline", "import torch\ntorch.distributed.barrier()", "torch.distributed only in"),
        ("fourfold.ir.mesh", "from torch import distributed", "torch.distributed only in"),
        ("fourfold.hardware.detect", "import torch.cuda", "torch only in"),
        ("fourfold.backends.stage.engine", "import triton.language as tl", "triton only in"),
        ("fourfold.compiler.answer", "import rich", "rich only in"),
    ],
)
def test_the_law_sees_a_planted_fault(module: str, text: str, rule: str) -> None:
    found = [broken(module, name) for name in imports(ast.parse(text))]
    assert any(answer and answer.startswith(rule) for answer in found), found


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("fourfold.passes.cuts", "from fourfold.ir.plan import Plan\nfrom fourfold.passes.price.price import price"),
        ("fourfold.hardware.topology", "def links():\n    import networkx"),
        ("fourfold.backends.stage.engine", "import torch.distributed as dist"),
        ("fourfold", "from fourfold.compiler.compile import compile"),
    ],
)
def test_the_law_lets_the_rest_through(module: str, text: str) -> None:
    assert [rule for name in imports(ast.parse(text)) if (rule := broken(module, name))] == []


def cycles(modules: Mapping[str, ast.Module]) -> list[list[str]]:
    """Modules of ours that import each other in a circle, wherever the imports stand."""
    graph = nx.DiGraph()
    for module, tree in modules.items():
        graph.add_edges_from((module, target) for target in _targets(tree, modules))
    return list(nx.simple_cycles(graph))


def _targets(tree: ast.Module, modules: Mapping[str, ast.Module]) -> set[str]:
    """The file that stands behind each import: `package.module` as well as `module.name`."""
    names = {name for name in imports(tree) if below(name, "fourfold")}
    return {name if name in modules else parent for name in names if (parent := name.rpartition(".")[0]) in modules}


def test_there_is_no_cycle_between_modules(product: tuple[Any, ...]) -> None:
    assert cycles({source.module: source.tree for source in product}) == []


def test_a_planted_cycle_is_found() -> None:
    texts = {
        "fourfold.ir": "",
        "fourfold.ir.plan": "from fourfold.ir import mesh",
        "fourfold.ir.mesh": "def f():\n    from fourfold.ir.plan import Plan",
    }
    assert len(cycles({module: ast.parse(text) for module, text in texts.items()})) == 1


def room(module: str, parts: int) -> str:
    """What stands directly in a folder of one part fewer, and holds `module`: a folder, or the module itself."""
    return ".".join(module.split(".")[:parts])


def circles(modules: Mapping[str, ast.Module], parts: int) -> list[list[str]]:
    """Rooms that import each other both ways, through whichever of their modules."""
    graph = nx.DiGraph()
    for module, tree in modules.items():
        graph.add_edges_from((room(module, parts), room(target, parts)) for target in _targets(tree, modules))
    return [sorted(found) for found in nx.strongly_connected_components(graph) if len(found) > 1]


@pytest.mark.parametrize("parts", [3, 4])
def test_folders_import_each_other_one_way_only(product: tuple[Any, ...], parts: int) -> None:
    assert circles({source.module: source.tree for source in product}, parts) == []


@pytest.mark.parametrize(
    ("below", "parts"), [("fourfold.backends", 3), ("fourfold.passes.batch", 4)], ids=["rooms", "rooms of a room"]
)
def test_a_planted_circle_of_folders_is_found(below: str, parts: int) -> None:
    texts = {
        f"{below}.stage.engine": f"from {below}.step.clip import clip",
        f"{below}.stage.runner": "",
        f"{below}.step.clip": "",
        f"{below}.step.step": f"def f():\n    from {below}.stage.runner import Runner",
    }
    modules = {module: ast.parse(text) for module, text in texts.items()}
    assert cycles(modules) == []
    assert circles(modules, parts) == [[f"{below}.stage", f"{below}.step"]]


def test_only_declared_libraries_are_imported(product: tuple[Any, ...], root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    needs = [*project["dependencies"], *extras["hf"], *extras["viz"]]
    declared = {need.split(";")[0].rstrip("0123456789.,<>=").strip() for need in needs}
    wrong = [
        f"{source.path} imports {name}, which pyproject.toml does not declare"
        for source in product
        for name in sorted({name.split(".")[0] for name in imports(source.tree)} - {"fourfold"})
        if name not in declared and name not in sys.stdlib_module_names
    ]
    assert not wrong, "\n".join(wrong)
