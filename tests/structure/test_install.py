"""scripts/install.py: a fitting torch stays, CPU builds are tried before the plain range, a real failure stops it."""

from __future__ import annotations

import runpy
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

NOT_SEEN = "ERROR: No matching distribution found for torch"
RANGE = "torch>=2.11,<2.14"


@pytest.fixture
def script(root: Path) -> dict[str, Any]:
    """The names of the script."""
    return runpy.run_path(str(root / "scripts" / "install.py"), run_name="install")


@pytest.fixture
def interpreter(tmp_path: Path) -> Callable[..., Path]:
    """Makes a stand-in for Python: it has the torch named in `torch.txt`, logs its pip installs, and those may fail."""

    def make(*, torch: str = "", pip_sees: str = "torch", complaint: str = NOT_SEEN) -> Path:
        (tmp_path / "torch.txt").write_text(torch, encoding="utf-8")
        python = tmp_path / "python"
        python.write_text(
            f"""#!/bin/sh
cd "{tmp_path}"
if [ "$1" = -c ]; then cat torch.txt; exit; fi
for wanted; do :; done
echo "$wanted" >>log.txt
case "$wanted" in {pip_sees}) echo 2.13.0 >torch.txt ;; *) echo "{complaint}" >&2; exit 1 ;; esac
""",
            encoding="utf-8",
        )
        python.chmod(python.stat().st_mode | stat.S_IXUSR)
        return python

    return make


def asked(python: Path) -> list[str]:
    """What the stand-in's pip was asked to install."""
    log = python.parent / "log.txt"
    return log.read_text(encoding="utf-8").split() if log.exists() else []


@pytest.fixture
def on_linux(script: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Callable[[Path], str]]:
    """The script's install_torch on Linux, with or without a GPU."""

    def choose(*, gpu: bool) -> Callable[[Path], str]:
        install: Callable[[Path], str] = script["install_torch"]
        monkeypatch.setitem(install.__globals__, "has_gpu", lambda: gpu)
        monkeypatch.setattr("sys.platform", "linux")
        return install

    return choose


@pytest.mark.parametrize("version", ["2.11.0", "2.12.1+cu130", "2.13.0+cpu"])
def test_a_fitting_torch_stays(version: str, on_linux: Any, interpreter: Any) -> None:
    python = interpreter(torch=version)
    assert on_linux(gpu=False)(python) == version
    assert asked(python) == []


def test_without_a_gpu_the_newest_visible_cpu_build_is_taken(on_linux: Any, interpreter: Any) -> None:
    python = interpreter(pip_sees="torch==2.12.1+cpu")
    on_linux(gpu=False)(python)
    assert asked(python) == ["torch==2.13.0+cpu", "torch==2.12.1+cpu"]


def test_without_any_cpu_build_the_plain_range_is_taken(on_linux: Any, interpreter: Any) -> None:
    python = interpreter(pip_sees="'torch>='*")
    on_linux(gpu=False)(python)
    assert asked(python)[-2:] == ["torch==2.11.0+cpu", RANGE]


def test_with_a_gpu_no_cpu_build_is_asked_for(on_linux: Any, interpreter: Any) -> None:
    python = interpreter(torch="2.10.0", pip_sees="'torch>='*")
    on_linux(gpu=True)(python)
    assert asked(python) == [RANGE]


def test_a_full_disk_does_not_lead_to_a_cuda_build(script: dict[str, Any], on_linux: Any, interpreter: Any) -> None:
    python = interpreter(pip_sees="'torch>='*", complaint="OSError: No space left on device")
    with pytest.raises(Exception, match="No space left on device"):
        on_linux(gpu=False)(python)
    assert asked(python) == ["torch==2.13.0+cpu"]


@pytest.mark.parametrize(("version", "fits"), [("2.10.1", False), ("2.11.0", True), ("2.14.0", False), ("3.0", False)])
def test_the_range_is_half_open(script: dict[str, Any], version: str, fits: bool) -> None:
    assert script["torch_range"]() == RANGE
    assert script["fits"](version, RANGE) is fits


def test_the_tools_and_transformers_come_last(script: dict[str, Any], interpreter: Any, tmp_path: Path) -> None:
    python = interpreter(torch="2.13.0+cpu", pip_sees="*")
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "python").symlink_to(python)
    script["main"](tmp_path / "venv")
    assert asked(python)[-1] == f"{script['ROOT']}[dev,hf]"
    assert not any(wanted.startswith("torch") for wanted in asked(python))
