"""FlexSP's figure 4: the published profile is read as published, and our policies come near the published ratios."""

from __future__ import annotations

import gzip
from pathlib import Path
from statistics import fmean

import flexsp
import pytest
from flexsp_published import PAD, SEQUENCES, crawled, listed, paper, published, share_of, wikipedia

from fourfold.ir.batch_rules import complaints
from fourfold.passes.batch import POLICIES
from fourfold.passes.batch.flexsp import flexsp as policy
from fourfold.passes.batch.timing.timing import timed

NEAR = 0.12


def test_the_ratios_of_wikipedia_are_the_paper_s() -> None:
    """Static over flexsp: with the one fitted constant in both cells; by the profile alone in the first."""
    rows = flexsp.wikipedia_rows(6, effort=0.0)
    once = flexsp.once(rows)
    assert 0.0 < once < 0.2 * rows[0].paper[0]
    assert abs(rows[0].miss()) < NEAR
    assert all(abs(row.miss(once)) < NEAR for row in rows)
    assert all(static > same > unlike for static, same, unlike in (row.ours for row in rows))
    assert f"{rows[1].ratio(once):.2f} / 1.46" in flexsp.table(rows, once)


@pytest.mark.parametrize("suffix", ("txt", "txt.gz"))
def test_a_list_is_read_in_its_order(tmp_path: Path, suffix: str) -> None:
    """What is too long is dropped before batches are cut; a last part of a batch is left out."""
    lengths = [400_000, 1, *range(200, 200 + 2 * SEQUENCES), 300_000]
    file = tmp_path / f"lengths.{suffix}"
    text = "".join(f"{length}\n" for length in lengths)
    file.write_bytes(gzip.compress(text.encode()) if suffix.endswith("gz") else text.encode())
    first, second = listed(file, 384_000, 0, 5)
    assert first[0] == PAD and first[1] == 256 and len(first) == len(second) == SEQUENCES
    assert second[0] == -(-(200 + SEQUENCES - 1) // PAD) * PAD
    assert listed(file, 384_000, 1, 5) == [second]


def test_terms_are_the_published_profile() -> None:
    """By hand, eq. 12-14: 0.629 s a micro-step, 0.184 ms a token, 5.128e-6 ms a pair; 2 MiB a token over GB/s."""
    terms = published(192_000)
    assert terms.bounds.capacity == int((30 * 1024 - 7.11745e9 * 16 / 64 / 2**20) / 4.480441895)
    assert terms.task(10_000, 1) == pytest.approx(0.1839576e-3 * 10_000 + 5.128e-9 * 1e8)
    assert terms.task(10_000, 8) == pytest.approx((1.839576 + 0.5128 + 2e-3 * 10_000 / 96.5) / 8)
    assert terms.fastest(10_000, 8)[1] == "ulysses"
    batch = policy([40_000], terms)
    degree = len(batch.pieces[0].ranks)
    assert timed(batch, terms).seconds == pytest.approx(0.6293563 + terms.task(40_000, degree), rel=1e-4)


@pytest.mark.parametrize("longest", (192_000, 384_000))
def test_lengths_are_like_the_published(longest: int) -> None:
    """Wikipedia: 98.4 % of documents up to 8K tokens, 1,014 tokens in the mean; CommonCrawl: 3.6K to 5K."""
    wiki = [length for batch in wikipedia(longest, 40) for length in batch]
    assert len(wiki) == 40 * SEQUENCES and max(wiki) <= longest and all(length % PAD == 0 for length in wiki)
    assert sum(length <= 8192 for length in wiki) / len(wiki) == pytest.approx(0.984, abs=0.002)
    assert fmean(wiki) - PAD / 2 == pytest.approx(1014, rel=0.03)
    crawl = [length for batch in crawled(longest, 40, share=0.05, index=1.1) for length in batch]
    assert 3000 < fmean(crawl) < 5000 and max(crawl) <= longest


def test_policies_place_by_published_terms() -> None:
    lengths = wikipedia(192_000, 1)[0]
    terms = published(192_000, share=share_of(lengths, 192_000, 0.9))
    for name in ("static_cp", "homogeneous", "flexsp"):
        assert complaints(POLICIES[name](lengths, terms), terms.bounds) == ()
    assert paper("wikipedia", 384_000) == (8.1, 6.0, 5.6, 1.46)
