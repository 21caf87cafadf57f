"""Help, profiles and mistakes answer at once: no torch, no solver."""

from __future__ import annotations

import json
import resource
import tomllib
from collections.abc import Callable
from typing import Any

import pytest

CODE = """
import json, sys
from fourfold.compiler.cli.app import run
for words in json.loads(sys.argv[1]):
    code = run(words)
    heavy = {"torch", "ortools", "triton", "networkx", "sympy", "numpy"} & set(sys.modules)
    print(json.dumps([words, code, sorted(heavy)]), file=sys.stderr)
"""
QUICK = [
    (("--help",), 0),
    (("--version",), 0),
    (("plan", "--help"), 0),
    (("run", "--help"), 0),
    (("hardware", "list"), 0),
    (("hardware", "show", "dgx-h200"), 0),
    (("hardware", "check", "dgx-h200"), 0),
    (("plan",), 2),
    (("plan", "llama-8b"), 2),
    (("nonsense",), 2),
    (("plan", "llama-8b", "--hardware", "dgx-h200", "--length", "many"), 2),
    (("plan", "llama-8b", "--hardware", "nowhere"), 12),
    (("show", "absent.json"), 2),
    (("simulate", "--help"), 0),
    (("doctor", "--help"), 0),
    (("launch", "--help"), 0),
    (("launch", "absent.json", "train.py"), 2),
    (("simulate", "llama-8b"), 2),
    (("simulate", "absent.json"), 2),
]


def test_nothing_heavy_is_loaded(process: Callable[..., Any]) -> None:
    said = process(json.dumps([words for words, _ in QUICK]), python=("-c", CODE))
    found = [json.loads(line) for line in said.err.splitlines() if line.startswith("[")]
    assert found == [[list(words), code, []] for words, code in QUICK], said.err


@pytest.mark.parametrize("arguments", [("--help",), ("hardware", "list"), ("hardware", "check", "dgx-h200"), ("plan",)])
def test_it_takes_a_moment(process: Callable[..., Any], arguments: tuple[str, ...]) -> None:
    """0.7 s of processor time, best of three: what else runs on the machine does not count."""

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        process(*arguments)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) <= 0.7


def test_importing_fourfold_is_light_and_its_names_are_there(process: Callable[..., Any]) -> None:
    code = (
        "import sys, fourfold\n"
        "assert not {'torch', 'ortools', 'numpy', 'rich'} & set(sys.modules), sorted(sys.modules)\n"
        "assert [name for name in fourfold.__all__ if getattr(fourfold, name) is None] == []\n"
        "assert set(fourfold.__all__) >= {'plan', 'compile', 'Workload', 'Precision', 'Plan', 'Options', 'verify'}\n"
        "try:\n    fourfold.nonsense\nexcept AttributeError as error:\n    print(error)\n"
    )
    said = process(python=("-c", code))
    assert (said.code, said.out) == (0, "fourfold has no 'nonsense'\n"), said.err


def test_the_version_is_the_project_s(process: Callable[..., Any], pytestconfig: pytest.Config) -> None:
    project = tomllib.loads((pytestconfig.rootpath / "pyproject.toml").read_text())["project"]
    assert process("--version").out == f"fourfold {project['version']}\n"
