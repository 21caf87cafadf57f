"""What the documents say is there: links lead somewhere, commands exist, Python snippets parse."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
NAMES = [path.relative_to(ROOT).as_posix() for path in DOCUMENTS]

LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def dead_links(document: Path) -> list[str]:
    """Relative links of a document whose file, or heading, is not there. The web is not asked."""
    dead = []
    for link in LINK.findall(document.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = document.parent / name if name else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    return dead


def anchors(document: Path) -> set[str]:
    """The anchors that a document's headings get."""
    headings = HEADING.findall(document.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def snippets(document: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return [text for found, text in FENCE.findall(document.read_text(encoding="utf-8")) if found == language]


def missing(command: str) -> str | None:
    """Why a command of a document cannot be run from the root of the repository, or None."""
    words = command.split()
    match words:
        case ["make", target, *_]:
            found = re.search(rf"^{re.escape(target)}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
            return None if found else f"the Makefile has no {target}"
        case ["fourfold", *rest]:
            return unknown_to_fourfold(rest)
        case ["python" | "torchrun", *rest]:
            scripts = [word for word in rest if word.endswith(".py")]
            return next((f"{script} does not exist" for script in scripts if not (ROOT / script).exists()), None)
        case ["git" | "cd" | "pip", *_]:
            return None
    return "the check knows make, fourfold, python, torchrun, git, cd and pip"


def unknown_to_fourfold(words: list[str]) -> str | None:
    """Why the command line refuses the command or an option of it, or None: --help must answer and name each."""
    depth = 2 if words[:1] == ["hardware"] else 1
    command = [sys.executable, "-m", "fourfold", *words[:depth], "--help"]
    wide = {**os.environ, "COLUMNS": "200"}
    answer = subprocess.run(command, cwd=ROOT / "src", env=wide, capture_output=True, text=True)
    if answer.returncode != 0:
        return f"fourfold has no command {' '.join(words[:depth])}"
    options = {word.partition("=")[0] for word in words if word.startswith("--")}
    return next((f"{words[0]} has no {option}" for option in sorted(options) if option not in answer.stdout), None)


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    assert dead_links(ROOT / name) == []


@pytest.mark.parametrize("name", NAMES)
def test_commands_exist(name: str) -> None:
    lines = [line for text in snippets(ROOT / name, "console") for line in text.splitlines()]
    commands = dict.fromkeys(line[2:].partition("#")[0].strip() for line in lines if line.startswith("$ "))
    assert [f"{command}: {reason}" for command in commands if (reason := missing(command))] == []


@pytest.mark.parametrize("name", NAMES)
def test_python_snippets_parse(name: str) -> None:
    for text in snippets(ROOT / name, "python"):
        ast.parse(text, filename=name)


def test_a_planted_dead_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One two\n[a](#one-two) [b](page.md#one-two) [c](gone.md) [d](#three) [e](https://x.org/)\n")
    assert dead_links(page) == ["gone.md", "#three"]


@pytest.mark.parametrize("command", ["make nothing", "python examples/nothing.py", "rm -r src"])
def test_a_planted_command_is_found(command: str) -> None:
    assert missing(command)
