"""Runs a captured model packed, in one process, and compares it with the plain module run document by document."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import zoo
from torch import nn


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Gives each test that asks for them every accepted or refused model."""
    for name, table in (("accepted", zoo.ACCEPTED), ("refused", zoo.REFUSED)):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, table.values(), ids=table.keys())  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def models() -> dict[str, Callable[[], nn.Module]]:
    return zoo.ACCEPTED
