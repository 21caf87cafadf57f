"""Makes one environment ready for Fourfold: `python scripts/install.py FOLDER`. Uses the standard library only.

A fitting torch that is already there stays. Without a GPU, a CPU build is taken wherever pip can see one: CUDA builds
are large.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Newest first. Naming the local version matches CPU builds only: on Linux the plain versions are CUDA builds.
CPU_BUILDS = ("torch==2.13.0+cpu", "torch==2.12.1+cpu", "torch==2.12.0+cpu", "torch==2.11.0+cpu")
NOT_SEEN = ("No matching distribution found", "Could not find a version that satisfies")
GPU_TOOLS = (("nvidia-smi", "-L"), ("rocm-smi", "--showid"))
# The tools of development, and transformers: it asks for no torch of its own, so the one that is there stays.
EXTRAS = "dev,hf"
PIP_INSTALL = ("-m", "pip", "install", "--no-input", "--disable-pip-version-check")
START = time.monotonic()


class InstallError(Exception):
    """A step failed; the text says which and what to do."""


def say(text: str) -> None:
    """Prints one line of progress with the seconds since the start."""
    print(f"[install {time.monotonic() - START:4.0f} s] {text}", flush=True)


def torch_range() -> str:
    """The torch requirement as pyproject.toml states it, for example 'torch>=2.11,<2.14'."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needs: list[str] = project["dependencies"]
    return next(need for need in needs if re.match(r"torch\b", need))


def fits(version: str, requirement: str) -> bool:
    """Decides whether a torch version such as '2.12.1+cu130' lies in the stated half-open range."""
    low, high = (tuple(map(int, pair)) for pair in re.findall(r"(\d+)\.(\d+)", requirement))
    found = re.match(r"(\d+)\.(\d+)", version)
    return found is not None and low <= tuple(map(int, found.groups())) < high


def torch_in(python: Path | str) -> str | None:
    """The version of the torch that this interpreter imports, or None."""
    answer = subprocess.run([python, "-c", "import torch; print(torch.__version__)"], capture_output=True, text=True)
    return answer.stdout.split()[-1] if answer.returncode == 0 and answer.stdout.strip() else None


def has_gpu() -> bool:
    """Decides whether an NVIDIA or AMD GPU is there: its tool exists and answers."""
    tools = [tool for tool in GPU_TOOLS if shutil.which(tool[0])]
    return any(subprocess.run(tool, capture_output=True).returncode == 0 for tool in tools)


def environment(folder: Path) -> Path:
    """The interpreter of the virtual environment at `folder`, which is made if it is not there, with pip in it."""
    python = folder / "bin" / "python"
    if not python.exists():
        own = torch_in(sys.executable)
        lend = ["--system-site-packages"] if own and fits(own, torch_range()) else []
        say(f"make {folder} with Python {sys.version.split()[0]}" + (f" that sees its torch {own}" if lend else ""))
        run(sys.executable, "-m", "venv", *lend, folder)
    if subprocess.run([python, "-m", "pip", "--version"], capture_output=True).returncode != 0:
        run(python, "-m", "ensurepip")
    return python


def run(*command: str | Path) -> None:
    """Runs a command in view; raises InstallError if it fails."""
    if subprocess.run(command).returncode != 0:
        raise InstallError(f"this failed: {' '.join(map(str, command))}; its own message is above")


def pip(python: Path, *arguments: str | Path) -> None:
    """Installs with the pip of the environment, in view."""
    run(python, *PIP_INSTALL, *arguments)


def cpu_torch(python: Path) -> bool:
    """Installs the newest CPU build that pip can see; False when it sees none."""
    for build in CPU_BUILDS:
        say(f"look for {build}")
        answer = subprocess.run([python, *PIP_INSTALL, build], stderr=subprocess.PIPE, text=True)
        if answer.returncode == 0:
            return True
        if not any(text in answer.stderr for text in NOT_SEEN):
            raise InstallError(f"pip could not install {build}:\n{answer.stderr.strip()}")
    return False


def install_torch(python: Path) -> str:
    """The version of torch in the environment: the one that was there if it fits, else a new one."""
    wanted = torch_range()
    found = torch_in(python)
    if found and fits(found, wanted):
        say(f"keep torch {found}, which is there already")
        return found
    if found:
        say(f"torch {found} is there, but Fourfold needs {wanted}")
    if sys.platform != "linux" or has_gpu() or not cpu_torch(python):
        say(f"install {wanted}, the build pip prefers here")
        pip(python, wanted)
    installed = torch_in(python)
    if installed is None:
        raise InstallError(f"torch was installed but does not import: try `{python} -c 'import torch'`")
    return installed


def main(folder: Path) -> None:
    """Installs Fourfold, editable and with its development tools, beside a torch that no step replaces."""
    python = environment(folder)
    version = install_torch(python)
    with tempfile.TemporaryDirectory() as scratch:
        constraints = Path(scratch) / "constraints.txt"
        constraints.write_text(f"torch=={version}\n", encoding="utf-8")
        say(f"install fourfold with its development tools beside torch {version}")
        pip(python, "--constraint", constraints, "--editable", f"{ROOT}[{EXTRAS}]")
    say(f"ready: {python}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python scripts/install.py FOLDER (the virtual environment to make or to use)")
    try:
        main(Path(sys.argv[1]).absolute())
    except InstallError as error:
        sys.exit(f"install: {error}")
