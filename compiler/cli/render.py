"""Sections of text on a terminal: titles in bold, bars in colour; the same characters without."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from typing import Final

from rich.console import Console
from rich.text import Text

from fourfold.ir.text import Section

WIDEST: Final = 100
STYLES: Final = (
    (re.compile(r"(?<= )#+"), "cyan"),
    (re.compile(r"(?<=[# ])\++(?=[.|! ]|$)"), "yellow"),
    (re.compile(r"!\|"), "bold red"),
    (re.compile(r"\[\w+\]$"), "dim"),
)


def show(sections: Iterable[Section]) -> None:
    """Prints sections on stdout, an empty line between."""
    console = Console(highlight=False, soft_wrap=True)
    width = min(WIDEST, console.width)
    for i, section in enumerate(sections):
        if i:
            console.print()
        console.print(styled(section, width))


def styled(section: Section, width: int) -> Text:
    """The section's lines with styles."""
    titles = len(Section(section.title).lines(width))
    text = Text()
    for i, line in enumerate(section.lines(width)):
        piece = Text(line, style="bold" if i < titles else "")
        for pattern, style in STYLES if i >= titles else ():
            piece.highlight_regex(pattern, style)
        text.append_text(piece).append("\n")
    text.rstrip()
    return text


def dump(value: object) -> None:
    """Prints JSON on stdout."""
    print(json.dumps(value, indent=2))


def say(text: str) -> None:
    """A line for whoever watches: on stderr, only on a terminal."""
    if sys.stderr.isatty():
        print(text, file=sys.stderr)
