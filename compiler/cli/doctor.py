"""`fourfold doctor`: what this machine and this installation have, what they lack, and what follows from that."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import typer

from fourfold.compiler.cli import options
from fourfold.compiler.cli.render import dump, show
from fourfold.compiler.version import VERSION
from fourfold.hardware.errors import RunError
from fourfold.ir.text import Section, size

NAME = "fourfold"
WANTED = re.compile(r"(?P<name>[\w.-]+)(?P<versions>[^;]*)")
BOUND = re.compile(r"(>=|<)\s*([\d.]+)")
SYSTEM = re.compile(r"sys_platform\s*==\s*['\"](?P<system>\w+)['\"]")
EXTRA = re.compile(r"extra\s*==\s*['\"](?P<extra>\w+)['\"]")
FOR: dict[str, str] = {"hf": "models of transformers and their weights", "viz": "pictures as PNG"}
"""What the extras that users install are for."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: ok, "note" where something that can be done without is missing, or "error"."""

    about: str
    found: str
    level: str = "ok"


def doctor(as_json: options.Json = False) -> None:
    """Say what this machine and installation have and lack. Exit code 13 if something needed is missing."""
    found = (*software(), *places(), *devices())
    if as_json:
        dump({"schema": "fourfold.doctor/1", "findings": [asdict(one) for one in found]})
    else:
        rows = tuple((one.about, one.found, "" if one.level == "ok" else f"[{one.level}]") for one in found)
        show([Section("This installation", rows, "lll")])
    if any(one.level == "error" for one in found):
        raise typer.Exit(RunError.exit_code)


def software() -> Iterator[Finding]:
    """Python, Fourfold, and each library it declares: whether there, and whether of a version it takes."""
    yield Finding("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield Finding("fourfold", f"{VERSION}, {Path(__file__).parents[2]}")
    for text in _declared():
        wanted = WANTED.match(text)
        extra, system = EXTRA.search(text), SYSTEM.search(text)
        name = extra["extra"] if extra else ""
        if wanted and name in ("", *FOR) and (system is None or system["system"] == sys.platform):
            yield library(wanted["name"], wanted["versions"], name)


def _declared() -> list[str]:
    """What the installed project asks for; nothing where it runs from a checkout that was never installed."""
    try:
        return requires(NAME) or []
    except PackageNotFoundError:
        return []


def library(name: str, versions: str, extra: str) -> Finding:
    """One library: missing or of another version, that is an error, of an extra's only a note."""
    level = "note" if extra else "error"
    needed = f"for {FOR[extra]}: pip install 'fourfold[{extra}]'" if extra else "needed: run make install"
    try:
        found = version(name)
    except PackageNotFoundError:
        return Finding(name, f"missing, {needed}", level)
    if not fits(found, versions):
        return Finding(name, f"{found} is not {versions}, {needed}", level)
    return Finding(name, found)


def fits(found: str, versions: str) -> bool:
    """Whether a version lies within bounds such as `>=2.11,<2.14`, by its leading numbers."""
    here = _numbers(found)
    bounds = [(sign, _numbers(text)) for sign, text in BOUND.findall(versions)]
    return all(here >= bound if sign == ">=" else here < bound for sign, bound in bounds)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in re.match(r"[\d.]*", text)[0].split(".") if word)  # type: ignore[index]


def places() -> Iterator[Finding]:
    """Where graphs, measured machines and reports are kept: each is done without when it cannot be written."""
    folder = Path("~/.cache/fourfold").expanduser()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if os.access(there, os.W_OK):
        yield Finding("cache", str(folder))
    else:
        yield Finding("cache", f"{folder} cannot be written: every plan captures its model anew", "note")


def devices() -> Iterator[Finding]:
    """Processors, memory, GPUs, and the libraries that processes talk through."""
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield Finding("processors", f"{os.cpu_count()} of {size(pages)} memory")
    try:
        import torch
    except Exception as error:
        # A torch that does not load is what a doctor is called for, whatever it fails with.
        yield Finding("torch loads", " ".join(f"{type(error).__name__}: {error}".split()), "error")
        return
    count = torch.cuda.device_count()
    for name in dict.fromkeys(torch.cuda.get_device_name(i) for i in range(count)):
        same = [i for i in range(count) if torch.cuda.get_device_name(i) == name]
        memory = torch.cuda.get_device_properties(same[0]).total_memory
        yield Finding("GPUs", f"{len(same)} x {name}, {size(memory)} each")
    if not count:
        built = "CUDA" if torch.version.cuda else "ROCm" if torch.version.hip else "a CPU"
        yield Finding("GPUs", f"none seen by torch, built for {built}: runs use gloo processes", "note")
    if sys.platform != "linux":
        yield Finding("triton", "Triton kernels need Linux: plan, show, verify and demo do without", "note")
