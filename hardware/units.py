"""Quantities: text with a unit, such as "450 GB/s", becomes a plain SI number, and back.

Five kinds are known: bytes, bandwidth (bytes per second), rate (FLOP per second), frequency (hertz) and time
(seconds). Case matters, because Mb is not MB: bits are accepted for bandwidths only, as networks are sold in bits.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Final, Literal

from fourfold.hardware.errors import ProfileError

Kind = Literal["bytes", "bandwidth", "rate", "frequency", "time"]

EXAMPLES: Final[dict[Kind, str]] = {
    "bytes": '"141 GB"',
    "bandwidth": '"450 GB/s"',
    "rate": '"989 TFLOP/s"',
    "frequency": '"1830 MHz"',
    "time": '"3.4 us"',
}
SUFFIX: Final[dict[Kind, str]] = {"bytes": "B", "bandwidth": "B/s", "rate": "FLOP/s", "frequency": "Hz", "time": "s"}
DECIMAL: Final = (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3), ("", 1.0))
BINARY: Final = (("Ti", 2.0**40), ("Gi", 2.0**30), ("Mi", 2.0**20), ("Ki", 2.0**10))
ALIASES: Final = {
    "kbps": "kb/s",
    "Mbps": "Mb/s",
    "Gbps": "Gb/s",
    "Tbps": "Tb/s",
    "Gbit/s": "Gb/s",
    "MBps": "MB/s",
    "GBps": "GB/s",
    "TBps": "TB/s",
    "µs": "us",
}
ADVICE: Final = {
    "TFLOPS": "write TFLOP/s, and give the dense rate",
    "TFLOPs": "write TFLOP/s, and give the dense rate",
    "TFLOP": "a rate is per second: write TFLOP/s",
    "PFLOPS": "write PFLOP/s, and give the dense rate",
    "GFLOPS": "write GFLOP/s",
    "TOPS": "write TOP/s, and give the dense rate",
    "GT/s": "transfers are not bytes: PCIe 4 x16 carries 31.5 GB/s and PCIe 5 x16 carries 63 GB/s in each direction",
    "gb/s": "write Gb/s for bits or GB/s for bytes",
    "GB/S": "write GB/s",
    "G": "write GB, GiB, GB/s or Gb/s",
    "gb": "write GB (10^9 bytes) or GiB (2^30 bytes)",
    "mb": "write MB (10^6 bytes) or MiB (2^20 bytes)",
    "Gb": "a capacity is in bytes: write GB or GiB",
    "Mb": "a capacity is in bytes: write MB or MiB",
    "sec": "write s",
}
QUANTITY: Final = re.compile(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?)\s*([A-Za-zµ/]+)\s*")


class UnitError(ProfileError):
    """A quantity that cannot be read: carries the code HW101 to HW104 apart from the sentence."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(f"{code} {text}")
        self.code = code
        self.text = text


def units(kind: Kind) -> Iterator[tuple[str, float, float]]:
    """Each unit of a kind as (name, multiply by, divide by), the everyday decimal family first, largest first."""
    if kind == "time":
        yield from (("s", 1.0, 1.0), ("ms", 1.0, 1e3), ("us", 1.0, 1e6), ("ns", 1.0, 1e9))
        return
    yield from ((prefix + SUFFIX[kind], factor, 1.0) for prefix, factor in DECIMAL)
    if kind == "rate":
        yield from ((prefix + "OP/s", factor, 1.0) for prefix, factor in DECIMAL)
    if kind == "bandwidth":
        yield from ((prefix + "b/s", factor, 8.0) for prefix, factor in DECIMAL)
    if kind in ("bytes", "bandwidth"):
        yield from ((prefix + SUFFIX[kind], factor, 1.0) for prefix, factor in BINARY)


UNITS: Final[dict[str, tuple[Kind, float, float]]] = {
    unit: (kind, times, per) for kind in EXAMPLES for unit, times, per in units(kind)
}


def quantity(value: object, kind: Kind) -> float:
    """The SI number that `value` states.

    Raises UnitError: HW101 no unit, HW102 unreadable, HW103 unknown unit, HW104 a unit of another kind.
    """
    if isinstance(value, bool) or not isinstance(value, str):
        raise UnitError("HW101", f"{value} has no unit; write it as a string with one, for example {EXAMPLES[kind]}")
    found = QUANTITY.fullmatch(value)
    if found is None:
        raise UnitError("HW102", f'cannot read "{value}"; write a number and a unit, for example {EXAMPLES[kind]}')
    unit = ALIASES.get(found[2], found[2])
    if unit not in UNITS:
        raise UnitError("HW103", f'unknown unit "{found[2]}" in "{value}"; {_advice(found[2], kind)}')
    actual, times, per = UNITS[unit]
    if actual != kind:
        raise UnitError(
            "HW104", f'"{value}" is a {actual}; {_needed(kind)} is needed here, for example {EXAMPLES[kind]}'
        )
    return float(found[1].replace("_", "")) * times / per


def render(value: float, kind: Kind) -> str:
    """Text that reads back as exactly `value`, in the largest everyday unit that allows it."""
    for unit, times, per in _everyday(kind):
        text = f"{value * per / times:.15g} {unit}"
        if value * per >= times and _reads_back(text, value, kind):
            return text
    return f"{value!r} {SUFFIX[kind]}"


def short(value: float, kind: Kind) -> str:
    """Text for people: four digits in the largest everyday unit that keeps the number at 1 or more."""
    for unit, times, per in _everyday(kind):
        if value * per >= times and unit != "PFLOP/s":
            number = value * per / times
            return f"{number:.0f} {unit}" if number >= 1000 else f"{number:.4g} {unit}"
    return f"{value:.4g} {SUFFIX[kind]}"


def _everyday(kind: Kind) -> tuple[tuple[str, float, float], ...]:
    return tuple(units(kind))[: 4 if kind == "time" else len(DECIMAL)]


def _reads_back(text: str, value: float, kind: Kind) -> bool:
    return QUANTITY.fullmatch(text) is not None and quantity(text, kind) == value


def _needed(kind: Kind) -> str:
    return "a number of bytes" if kind == "bytes" else f"a {kind}"


def _advice(unit: str, kind: Kind) -> str:
    if unit in ADVICE:
        return ADVICE[unit]
    near = difflib.get_close_matches(unit, [name for name, _, _ in units(kind)], 1)
    if near:
        return f"did you mean {near[0]}?"
    return f"for example {EXAMPLES[kind]}"
