"""The meshes worth pricing: every factorisation of the ranks into data and tensor degrees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from fourfold.hardware.errors import UsageError
from fourfold.ir.mesh import Mesh
from fourfold.passes.pins import number


def meshes(ranks: int, pins: Mapping[str, str | int]) -> Iterator[Mesh]:
    """dp x tp = ranks for every divisor, pins respected. Raises UsageError when the pins cannot fill the ranks."""
    tp, dp = number(pins, "tp"), number(pins, "dp")
    degrees = [n for n in range(1, ranks + 1) if ranks % n == 0]
    wanted = [n for n in degrees if tp in (None, n) and dp in (None, ranks // n)]
    if not wanted:
        pinned = " x ".join(f"{axis}{pins[axis]}" for axis in ("dp", "tp") if axis in pins)
        raise UsageError(f"{pinned} does not fill {ranks} ranks; tp may be {_words(degrees)}, and dp is {ranks} / tp")
    for n in wanted:
        yield Mesh(dp=ranks // n, tp=n)


def _words(degrees: list[int]) -> str:
    texts = [str(n) for n in degrees]
    return f"{', '.join(texts[:-1])} or {texts[-1]}" if len(texts) > 1 else texts[0]
