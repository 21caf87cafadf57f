"""Where an exported node comes from: its module, the module's call number, and the user's line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

LINE = re.compile(r'File "([^"]+)", line (\d+)')


def frame(node: Any) -> str:
    """Full name of the module that made the node, `@k` behind the name of a module in its call number k.

    A module that lives elsewhere and is called inside a list's item counts as that item.
    """
    named, outer = "", ""
    for key, (path, _) in (node.meta.get("nn_module_stack") or {}).items():
        if not path or path == outer:
            continue
        inside = bool(outer) and path.startswith(outer + ".")
        if not inside and any(word.isdigit() for word in outer.split(".")):
            break
        count = key.rpartition("@")[2] if "@" in key else ""
        named = (named + path[len(outer) :] if inside else path) + (f"@{count}" if count.isdigit() else "")
        outer = path
    return named


def where(node: Any) -> str:
    """The module and the user's line, for messages: `layers.0.attention (model.py:31)`."""
    name = re.sub(r"@\d+", "", frame(node)) or "the model"
    line = user_line(node.meta.get("stack_trace") or "")
    return f"{name} ({line})" if line else name


def user_line(trace: str) -> str:
    """`file.py:line` of the last frame outside torch in a printed stack."""
    frames = [(path, line) for path, line in LINE.findall(trace) if "/torch/" not in path]
    return f"{Path(frames[-1][0]).name}:{frames[-1][1]}" if frames else ""
