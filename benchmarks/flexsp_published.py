"""FlexSP as published: its profile of GPT-7B on 64 A100 as terms that policies place by, its bars, its lengths."""

from __future__ import annotations

import csv
import gzip
import random
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import exp, log
from pathlib import Path
from statistics import NormalDist

from fourfold import compiler
from fourfold.hardware import load
from fourfold.ir.batch_rules import Bounds
from fourfold.passes.batch.timing.refusal import SLACK
from fourfold.passes.batch.timing.terms import Terms

DATA = Path(__file__).parent / "data" / "flexsp.csv"
RANKS = 64
SEQUENCES = 512
"""Of a batch."""

PAD = 128
"""Lengths are padded to multiples of this."""

BEGUN = 8192
"""Tokens at which the CommonCrawl-like tail begins, and its longest."""
LONGEST = 384_000


@cache
def facts() -> Mapping[tuple[str, str], float]:
    """The published numbers by what they are of and at what: a degree, a longest length in thousands, a quantile."""
    with DATA.open(encoding="utf-8") as file:
        return {(row["what"], row["at"]): float(row["value"]) for row in csv.DictReader(file)}


def paper(cell: str, longest: int) -> tuple[float, float, float, float]:
    """Seconds of static, homogeneous and flexsp in a cell of figure 4, and the printed ratio of first to last."""
    static, alike, flexsp, ratio = (
        facts()[f"{cell} {what}", str(longest // 1000)] for what in ("static", "homogeneous", "flexsp", "ratio")
    )
    return static, alike, flexsp, ratio


@dataclass(frozen=True)
class Published(Terms):
    """Terms from published constants (eq. 12-14): attention is quadratic in the length, exchanges go by bandwidth.

    quadratic: seconds of a pair of tokens. exchanged: seconds of a token at one GB/s. Heads are exchanged and nothing
    else has a price; a degree that was not measured has the bandwidth of the next. The machine is not asked.
    """

    quadratic: float = 0.0
    exchanged: float = 0.0

    def alone(self, length: int) -> float:
        """Seconds of attention over one document on one rank."""
        return self.quadratic * length**2

    def shared(self, length: int, ranks: int, method: str) -> float:
        """Seconds of attention over one document that `ranks` neighbours share, and of what they exchange."""
        if ranks == 1:
            return self.alone(length)
        if method != "ulysses":
            return float("inf")
        bandwidth = facts()["bandwidth", str(2 ** (ranks - 1).bit_length())]
        return (self.alone(length) + self.exchanged * length / bandwidth) / ranks


def published(longest: int, *, share: float = 1.0, once: float = 0.0) -> Published:
    """GPT-7B with positions up to `longest` on 8 nodes of 8 A100 under ZeRO 3, with a share of a rank's room.

    once: seconds of a step that the profile leaves out. As in the public code, exchanges are four tensors forward and
    as many backward of 2 bytes a value in each layer, their MiB over GB/s, and weights take 16 bytes a parameter.
    """
    known = facts()
    weights = 16 * known["parameters", str(longest // 1000)] / RANKS / 2**20
    room = (1024 * known["limit", ""] - weights) / known["kept", ""]
    return Published(
        machine=load(f"dgx-a100-80gb:{RANKS}"),
        bounds=Bounds(RANKS, int(share * room), 3, int(known["heads", ""])),
        tensor=1,
        node=8,
        fixed=known["fixed", ""] / 1000,
        linear=known["linear", ""] / 1000,
        once=once,
        layers=(),
        travel="float32",
        quadratic=known["quadratic", ""] / 1000,
        exchanged=4 * 2 * 2 * known["layers", ""] * known["hidden", ""] / 2**20 / 1000,
    )


def share_of(lengths: Sequence[int], longest: int, share: float) -> float:
    """The share of the room that packing may use, or what the longest sequence needs on all ranks."""
    return max(share, (max(lengths) / RANKS + SLACK + 1) / published(longest).bounds.capacity)


def wikipedia(longest: int, batches: int) -> list[list[int]]:
    """Batches of 512 lengths like the Wikipedia list's: its quantiles, evenly spaced, in the order of a seed.

    The shipped table has 512 quantiles; what lies above them comes from the data file. Longer ones are dropped.
    """
    table = (Path(compiler.__file__).parent / "lengths" / "wikipedia.txt").read_text(encoding="utf-8")
    middle = [int(line) for line in table.splitlines() if not line.startswith("#")]
    tail = [(float(at), value) for (what, at), value in facts().items() if what == "tail"]
    known = [((i + 0.5) / len(middle), float(value)) for i, value in enumerate(middle)]
    points = [(0.0, known[0][1]), *(one for one in known if one[0] < tail[0][0]), *tail]
    count = SEQUENCES * (batches + 1)
    return _batches([_between(points, (i + 0.5) / count) for i in range(count)], longest, batches)


def listed(file: Path, longest: int, first: int, batches: int) -> list[list[int]]:
    """Batches of 512 lengths of a list, a length a line, in its order from the batch `first` on."""
    with (gzip.open if file.suffix == ".gz" else open)(file, "rt", encoding="utf-8") as lines:
        lengths = [float(line) for line in lines if line.strip().isdigit()]
    return _cut(_kept(lengths, longest))[first : first + batches]


def crawled(longest: int, batches: int, *, share: float, index: float) -> list[list[int]]:
    """Batches of 512 lengths in place of CommonCrawl's, which are not public: a log-normal body and a Pareto tail.

    The body has mean 3,000 and sigma 1 and ends where the tail begins; `share` of the sequences are in the tail.
    """
    count = SEQUENCES * (batches + 1)
    many = round(share * count)
    normal, mean = NormalDist(), log(3000) - 0.5
    below = normal.cdf(log(BEGUN) - mean)
    beyond = 1.0 - (BEGUN / LONGEST) ** index
    body = [exp(mean + normal.inv_cdf((i + 0.5) / (count - many) * below)) for i in range(count - many)]
    tail = [BEGUN * (1.0 - (i + 0.5) / many * beyond) ** (-1.0 / index) for i in range(many)]
    return _batches(body + tail, longest, batches)


def _between(points: Sequence[tuple[float, float]], at: float) -> float:
    """The length at a quantile; its logarithm is linear between known ones."""
    k = bisect_right(points, (at, float("inf"))) - 1
    (low, a), (high, b) = points[k : k + 2]
    return a * (b / a) ** ((at - low) / (high - low))


def _batches(lengths: Sequence[float], longest: int, batches: int) -> list[list[int]]:
    kept = _kept(lengths, longest)
    random.Random(0).shuffle(kept)
    return _cut(kept)[:batches]


def _kept(lengths: Sequence[float], longest: int) -> list[int]:
    """Padded; those that are too long are dropped."""
    padded = [-(-int(length) // PAD) * PAD for length in lengths]
    return [length for length in padded if 0 < length <= longest]


def _cut(lengths: Sequence[int]) -> list[list[int]]:
    return [list(lengths[at : at + SEQUENCES]) for at in range(0, len(lengths) - SEQUENCES + 1, SEQUENCES)]
