"""How a command ends: exit code, one line for an error, a written report for a fault of ours."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from fourfold.compiler.version import VERSION
from fourfold.hardware.errors import FourfoldError, UsageError

INTERNAL = 1
STOPPED = 130


def ended(command: Callable[[], object], arguments: Sequence[str]) -> int:
    """Runs the command; its exit code. Every error is told here, in one place."""
    try:
        answer = command()
    except FourfoldError as error:
        return _told(type(error).__name__, str(error), error.exit_code, arguments)
    except KeyboardInterrupt:
        return _told("Stopped", "stopped", STOPPED, arguments)
    except BrokenPipeError:
        # Whoever read our output has had enough; nothing can be told, and nothing is wrong.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return _unexpected(error, arguments)
    return answer if isinstance(answer, int) else 0


def _unexpected(error: Exception, arguments: Sequence[str]) -> int:
    """Mistakes that typer found are usage errors; the rest is ours, and is written down."""
    told = getattr(error, "format_message", None)
    if told is not None:
        return _told("UsageError", _usage(error, str(told())), UsageError.exit_code, arguments)
    if type(error).__name__ == "Abort":
        return _told("Stopped", "stopped", STOPPED, arguments)
    if "--debug" in arguments or os.environ.get("FOURFOLD_DEBUG"):
        traceback.print_exception(error)
    place = _report(error, arguments)
    said = " ".join(f"{type(error).__name__}: {error}".split())
    return _told("InternalError", f"internal error, {said[:300]}; the report is in {place}", INTERNAL, arguments)


def _usage(error: Exception, message: str) -> str:
    context = getattr(error, "ctx", None)
    path = getattr(context, "command_path", "fourfold")
    return f"{' '.join(message.split()).rstrip('.')}; `{path} --help` tells what there is"


def _told(kind: str, message: str, code: int, arguments: Sequence[str]) -> int:
    """Prints the error, on stderr as a line, or on stdout as JSON."""
    if "--json" in arguments:
        print(json.dumps({"error": {"kind": kind, "message": message, "exit_code": code}}, indent=2))
    else:
        # That nothing fits is an answer with a table; every other error is a line.
        text = message if kind == "InfeasibleError" else " ".join(message.split())
        print(f"fourfold: {text}", file=sys.stderr)
    return code


def _report(error: Exception, arguments: Sequence[str]) -> Path:
    """The traceback in a file of its own: under the user's cache, or where temporary files go."""
    lines = [f"fourfold {VERSION}, Python {sys.version}", f"arguments: {list(arguments)}", ""]
    text = "\n".join(lines) + "".join(traceback.format_exception(error))
    name = f"error-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    for folder in (Path("~/.cache/fourfold/reports").expanduser(), Path(tempfile.gettempdir())):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
        except OSError:
            continue
        return folder / name
    return Path(os.devnull)
