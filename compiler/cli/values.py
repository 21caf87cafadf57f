"""What users type after an option: sizes such as 8k, KEY=VALUE pairs, precisions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from fourfold.hardware.errors import UsageError

SIZE: Final = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[kKmMgG]?)i?")
POWERS: Final = {"": 0, "k": 1, "m": 2, "g": 3}


def tokens(text: str, option: str) -> int:
    """A number of tokens: `8192`, `8k`, `4M`, `128Ki`, all in powers of 1024. Raises UsageError."""
    found = SIZE.fullmatch(text.strip().replace(",", "").replace("_", ""))
    value = float(found["number"]) * 1024 ** POWERS[found["unit"].lower()] if found else 0.0
    if value < 1 or value != int(value):
        raise UsageError(
            f"{option} {text!r} is not a number of tokens; write for example 8192, 8k, 128Ki or 4M (k = 1024)"
        )
    return int(value)


def pairs(texts: Sequence[str], option: str) -> dict[str, int | float | bool | str]:
    """KEY=VALUE pairs; values that read as a number or as true and false become one. Raises UsageError."""
    found: dict[str, int | float | bool | str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip() or not value.strip():
            raise UsageError(f"{option} {text!r} is not KEY=VALUE")
        if key.strip() in found:
            raise UsageError(f"{option} {key.strip()} is given twice")
        found[key.strip()] = _scalar(value.strip())
    return found


def pins(texts: Sequence[str]) -> dict[str, str | int]:
    """The pins, with degrees as whole numbers of at least 0."""
    found: dict[str, str | int] = {}
    for key, value in pairs(texts, "--pin").items():
        if isinstance(value, float | bool) or (isinstance(value, int) and value < 0):
            raise UsageError(f"--pin {key}={value} is neither a degree nor the name of a label or mode")
        found[key] = value
    return found


def _scalar(text: str) -> int | float | bool | str:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
