"""FlexSP's figure 4 again: our policies on its published profile of GPT-7B on 64 A100, beside the paper's bars.

    PYTHONPATH=src python benchmarks/flexsp.py [--batches N] [--effort N]
    PYTHONPATH=src python benchmarks/flexsp.py --lengths wikipedia.txt --first 3 --batches 10

`--lengths` is the list of a million lengths in FlexSP's public code, read in its order, 512 a batch; without it batches
are drawn to its quantiles. Its code has no groups of one rank, its paper has: both are shown.

Static is one degree, 64; homogeneous the best one degree for each batch; both pack to 0.9 of the room, as the paper's
baselines do. The profile prices micro-steps and nothing outside them, so beside the seconds by the profile alone stand
those with one constant a step added: what the first static bar has more. It is the only number that is fitted.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from flexsp_published import RANKS, crawled, listed, paper, published, share_of, wikipedia

from fourfold.passes.batch.flexsp import EFFORT, flexsp
from fourfold.passes.batch.static_cp import alike, homogeneous
from fourfold.passes.batch.timing.timing import timed

PACKED = 0.9
"""Share of the room that the paper's baselines pack to."""

CRAWLS = ((0.05, 1.1), (0.07, 1.2))
"""Share and index of the tails that stand in for CommonCrawl."""


@dataclass(frozen=True, slots=True)
class Row:
    """A cell: mean seconds of static, homogeneous and flexsp by the profile, and the paper's with its printed ratio."""

    name: str
    longest: int
    ours: tuple[float, float, float]
    paper: tuple[float, float, float, float]

    def ratio(self, once: float = 0.0) -> float:
        """Static over flexsp, with seconds added to each step."""
        return (self.ours[0] + once) / (self.ours[2] + once)

    def miss(self, once: float = 0.0) -> float:
        """How far that is from the paper's."""
        return self.ratio(once) / self.paper[3] - 1.0


def measured(
    name: str, cell: str, longest: int, batches: Sequence[Sequence[int]], *, effort: float, narrowest: int = 1
) -> Row:
    """A cell over these batches."""
    full = published(longest)
    found = []
    for lengths in batches:
        packed = published(longest, share=share_of(lengths, longest, PACKED))
        static = timed(alike(lengths, RANKS, packed, policy="static_cp"), packed).seconds
        same = timed(homogeneous(lengths, packed), packed).seconds
        found.append((static, same, timed(flexsp(lengths, full, effort=effort, narrowest=narrowest), full).seconds))
    static, same, unlike = (fmean(each) for each in zip(*found, strict=True))
    return Row(name, longest, (static, same, unlike), paper(cell, longest))


def once(rows: Sequence[Row]) -> float:
    """Seconds of a step outside its micro-steps: what the paper's first static bar has more than the profile says."""
    return rows[0].paper[0] - rows[0].ours[0]


def wikipedia_rows(batches: int, *, effort: float) -> list[Row]:
    """The two Wikipedia cells."""
    return [
        measured("Wikipedia", "wikipedia", longest, wikipedia(longest, batches), effort=effort)
        for longest in (192_000, 384_000)
    ]


def listed_rows(file: Path, first: int, batches: int, *, effort: float) -> list[Row]:
    """The two Wikipedia cells over batches of the public list, without groups of one rank, and with them."""
    return [
        measured(name, "wikipedia", longest, listed(file, longest, first, batches), effort=effort, narrowest=narrowest)
        for name, narrowest in (("list, code", 2), ("list, paper", 1))
        for longest in (192_000, 384_000)
    ]


def crawled_rows(batches: int, *, effort: float) -> list[Row]:
    """The two CommonCrawl cells, with each tail."""
    return [
        measured(
            f"CC-like {share:.0%} {index}",
            "commoncrawl",
            longest,
            crawled(longest, batches, share=share, index=index),
            effort=effort,
        )
        for share, index in CRAWLS
        for longest in (192_000, 384_000)
    ]


def table(rows: Sequence[Row], added: float) -> str:
    """A line for each cell and price: seconds, and the ratio of static to flexsp, each over the paper's."""
    heads = f"{'static':>14}{'homogeneous':>14}{'flexsp':>14}{'static/flexsp':>16}{'':>8}"
    lines = [f"{'lengths':<16}{'longest':>8}  {'priced by':<18}{heads}"]
    for row in rows:
        for name, more in (("profile", 0.0), (f"profile + {added:.2f} s", added)):
            each = "".join(
                f"{f'{ours + more:.2f} / {theirs:.1f}':>14}"
                for ours, theirs in zip(row.ours, row.paper[:3], strict=True)
            )
            ratio = f"{row.ratio(more):.2f} / {row.paper[3]:.2f}"
            lines.append(f"{row.name:<16}{row.longest // 1000:>7}K  {name:<18}{each}{ratio:>16}{row.miss(more):>+8.1%}")
    return "\n".join(line.rstrip() for line in lines)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=40, help="of 512 sequences in each cell; the paper has 40")
    parser.add_argument("--effort", type=float, default=EFFORT, help="deterministic time of a solve; 0 for none")
    parser.add_argument("--lengths", type=Path, help="FlexSP's public list, a length a line, gzip or plain")
    parser.add_argument("--first", type=int, default=10, help="batch of the list to begin with")
    given = parser.parse_args()
    if given.lengths is not None:
        rows = listed_rows(given.lengths, given.first, given.batches, effort=given.effort)
    else:
        rows = wikipedia_rows(given.batches, effort=given.effort)
        rows += crawled_rows(given.batches, effort=given.effort)
    print(f"GPT-7B on {RANKS} A100, {given.batches} batches of 512 sequences, seconds: ours / the paper's\n")
    print(table(rows, once(rows)))


if __name__ == "__main__":
    main()
