"""The golden fixture itself: a missing or different text fails, --update-golden writes it."""

from __future__ import annotations

from pathlib import Path

import pytest

CONFTEST = (Path(__file__).resolve().parent.parent / "conftest.py").read_text(encoding="utf-8")

pytest_plugins = ("pytester",)


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    """A small test project with our conftest and one golden test."""
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(test_plan="def test_text(golden): golden('dp2 x tp2\\n')")
    return pytester


def test_a_missing_golden_text_fails(project: pytest.Pytester) -> None:
    result = project.runpytest()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*golden/test_plan/test_text.txt is missing*make golden*"])


def test_update_writes_what_then_passes(project: pytest.Pytester) -> None:
    project.runpytest("--update-golden").assert_outcomes(passed=1)
    written = project.path / "golden" / "test_plan" / "test_text.txt"
    assert written.read_text(encoding="utf-8") == "dp2 x tp2\n"
    project.runpytest().assert_outcomes(passed=1)


def test_a_different_golden_text_fails(project: pytest.Pytester) -> None:
    project.runpytest("--update-golden").assert_outcomes(passed=1)
    (project.path / "golden" / "test_plan" / "test_text.txt").write_text("dp4\n", encoding="utf-8")
    project.runpytest().assert_outcomes(failed=1)
