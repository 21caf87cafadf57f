"""Draws what a command prints as an SVG.

python scripts/picture.py docs/plan.svg plan llama-8b --hardware dgx-h200:4 --length 8k
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.text import Text


def main() -> int:
    """Runs `fourfold` with the arguments after the file name and saves its colours and text."""
    path, *command = sys.argv[1:]
    settings = {**os.environ, "COLUMNS": "80", "FORCE_COLOR": "1", "TERM": "xterm-256color"}
    done = subprocess.run([sys.executable, "-m", "fourfold", *command], env=settings, capture_output=True, text=True)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        return done.returncode
    console = Console(record=True, width=80, file=StringIO())
    console.print(Text.from_ansi(done.stdout.rstrip()))
    drawn = console.export_svg(title="fourfold " + " ".join(command))
    # The viewer's own fixed-width font: nothing is fetched to look at a picture.
    Path(path).write_text(re.sub(r"@font-face \{.*?\}", "", drawn, flags=re.DOTALL))
    return 0


if __name__ == "__main__":
    sys.exit(main())
