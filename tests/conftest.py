"""What every test may use: golden texts, one thread a process (two workers share two cores), no group left joined."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent

# Before any test imports torch; processes that a test starts inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden texts instead of comparing them")


@pytest.fixture(autouse=True)
def _groups_are_left() -> Iterator[None]:
    """A group that a test joined in this process ends with it: the next test would have to spawn its processes."""
    yield
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_initialized():
        distributed.destroy_process_group()


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Compares a text with tests/golden/<test file>/<test>.txt; `part` tells several texts of one test apart."""

    def compare(text: str, *, part: str = "") -> None:
        path = _golden_path(request, part)
        text = text.rstrip("\n") + "\n"
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            return
        if not path.exists():
            pytest.fail(f"{path.relative_to(TESTS)} is missing; write it with `make golden`, read it, and commit it")
        assert text == path.read_text(encoding="utf-8"), f"differs from {path.relative_to(TESTS)}"

    return compare


def _golden_path(request: pytest.FixtureRequest, part: str) -> Path:
    test_file = request.path.relative_to(TESTS).with_suffix("")
    name = "-".join(filter(None, (request.node.name, part)))
    return TESTS / "golden" / test_file / (re.sub(r"[^\w.=+-]+", "-", name).strip("-") + ".txt")
