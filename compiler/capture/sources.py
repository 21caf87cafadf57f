"""The user's files that decide what a model computes: those of its classes, and of what those import."""

from __future__ import annotations

import ast
import inspect
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})
"""Folders whose files only change with a version."""


def files(kinds: Iterable[type]) -> tuple[Path, ...]:
    """The files of these classes (torch's own left out), and those outside installed packages that they import."""
    found: set[Path] = set()
    seen: set[str] = set()
    queue = []
    for kind in kinds:
        module = sys.modules.get(kind.__module__)
        if kind.__module__.startswith("torch.") or module is None:
            continue
        if path := _file(module):
            found.add(path)
        queue.append(module)
    while queue:
        module = queue.pop()
        path = _file(module)
        if module.__name__ in seen or path is None or _installed(path):
            continue
        seen.add(module.__name__)
        found.add(path)
        queue.extend(_imports(module))
    return tuple(sorted(found))


def _imports(module: ModuleType) -> Iterator[ModuleType]:
    """Modules that a module's file imports, and those that what it holds comes from."""
    names: list[str | None] = list(_named(module))
    for value in list(vars(module).values()):
        names.append(value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None))
    for name in names:
        other = sys.modules.get(name) if isinstance(name, str) else None
        if other is not None and other is not module:
            yield other


def _named(module: ModuleType) -> Iterator[str]:
    """Full names in the import statements of a module's file; of `from a import b` both a and a.b."""
    path = _file(module)
    for node in ast.walk(ast.parse(path.read_bytes())) if path is not None else ():
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = (module.__package__ or "").split(".")
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            yield from (base, *(f"{base}.{alias.name}" for alias in node.names))


def _installed(path: Path) -> bool:
    return any(path.is_relative_to(folder) for folder in INSTALLED)


def _file(module: ModuleType) -> Path | None:
    try:
        name = inspect.getsourcefile(module)
    except TypeError:
        return None
    return Path(name) if name and Path(name).is_file() else None
