"""Our own block kernel equals the written-out one, compiles for every architecture with tiles, and skips what it may.

A process interprets Triton's kernels or compiles them, so each runs in one of its own: interpreted_blocks.py (float32
only: the interpreter computes bfloat16 wrongly) and compiled_blocks.py, beside this file.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fourfold.backends.kernels.block import BLOCKS, block_for
from fourfold.backends.kernels.block_spans import Sizes, key_jobs, layers, packed_layer, row_jobs, stacked
from fourfold.ir.sequence.rectangles import Rectangle, Softmax, rectangles
from fourfold.ir.sequence.tokens import LAYOUTS, joined, laid

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
SHARED = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "gfx90a": 64 * 1024, "gfx942": 64 * 1024}
"""Bytes of shared memory that one program of each architecture may take."""


def answered(script: str, *arguments: str, cache: Path, interpret: bool = False) -> Any:
    """What a program beside this file prints."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(ROOT / "src"), "TRITON_CACHE_DIR": str(cache)}
    environment |= {"TRITON_INTERPRET": "1"} if interpret else {}
    command = [sys.executable, str(HERE / script), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def version(package: str) -> tuple[int, ...]:
    return tuple(int(part) for part in importlib.metadata.version(package).split(".")[:2])


@pytest.mark.parametrize("cases", ["few", pytest.param("all", marks=pytest.mark.slow)])
def test_equals_the_written_out_block(cases: str, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    if version("triton") < (3, 9) and version("numpy") >= (2, 4):
        pytest.skip("the interpreter of this Triton fails in loops with this NumPy: install numpy<2.4")
    found = answered("interpreted_blocks.py", cases, cache=tmp_path, interpret=True)
    assert len(found) >= 3
    wrong = {case: errors for case, errors in found.items() if max(errors.values()) > 3e-5}
    assert not wrong


@pytest.mark.aot
@pytest.mark.parametrize("architecture", ["sm_90", "gfx942"])
def test_aot_small_kernels(architecture: str, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    found = answered("compiled_blocks.py", architecture, "bfloat16", "128", "merge", "delta", cache=tmp_path)
    assert all(one["code"] > 0 and one["shared"] <= SHARED[architecture] for one in found.values()), found


def test_moved_rows_are_the_written_out_ones(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    assert answered("interpreted_rows.py", cache=tmp_path, interpret=True) == []


@pytest.mark.aot
@pytest.mark.parametrize("architecture", SHARED)
def test_aot_moved_rows(architecture: str, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    found = answered("compiled_blocks.py", architecture, "bfloat16", "128", "pack", "join", cache=tmp_path)
    assert all(one["code"] > 0 and one["spilled"] == 0 for one in found.values()), found


@pytest.mark.aot
@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "dtype", "width"),
    [
        *((architecture, "bfloat16", 128) for architecture in SHARED),
        *((architecture, "float16", 96) for architecture in ("sm_90", "gfx942")),
        *((architecture, "float32", 64) for architecture in ("sm_80", "gfx90a")),
    ],
)
def test_aot_block_kernels(architecture: str, dtype: str, width: int, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    names = ("forward", "query", "key", "fresh forward", "fresh query", "fresh key")
    found = answered("compiled_blocks.py", architecture, dtype, str(width), *names, cache=tmp_path)
    assert set(found) == set(names)
    for name, one in found.items():
        assert one["code"] > 0, name
        assert 0 < one["shared"] <= SHARED[architecture], (name, one)
        assert one["spilled"] == 0, (name, one)
        # Products of 16 bits are for the matrix units; those of float32 stay exact, which NVIDIA's are not.
        assert one["matrix"] > 0 or dtype == "float32", name


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=8).map(tuple),
    softmax=st.builds(Softmax, st.just(1.0), st.booleans(), st.none() | st.integers(1, 30)),
    tiles=st.tuples(*(st.builds(Sizes, st.integers(1, 16), st.integers(1, 16)),) * 3),
)
def test_packed_documents_have_the_spans_of_their_rectangles(
    lengths: tuple[int, ...], softmax: Softmax, tiles: tuple[Sizes, Sizes, Sizes]
) -> None:
    """Found without rectangles."""
    (held,) = laid("contiguous", lengths, 1)
    (wanted,) = layers(rectangles(held, held, softmax), (held.tokens, held.tokens), tiles, torch.device("cpu"))
    how = {"causal": softmax.causal, "window": softmax.window, "sizes": tiles, "device": torch.device("cpu")}
    found = packed_layer(lengths, **how)  # type: ignore[arg-type]
    for name in ("spans_2M", "forward", "query", "key"):
        assert torch.equal(getattr(found, name), getattr(wanted, name)), name
    spans, sizes = wanted.spans_2M, tiles[2]
    first, past = spans.long()
    pairs = ((torch.arange(held.tokens) >= first[:, None]) & (torch.arange(held.tokens) < past[:, None])).long()
    check(found.key, pairs.T, sizes.keys, sizes.rows)


LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=4).map(tuple)
SOFTMAXES = st.builds(Softmax, st.just(1.0), st.booleans(), st.none() | st.integers(1, 30))


@settings(max_examples=150, deadline=None)
@given(
    lengths=LENGTHS,
    layout=st.sampled_from(sorted(LAYOUTS)),
    softmax=SOFTMAXES,
    ranks=st.integers(1, 4),
    pair=st.tuples(st.integers(0, 3), st.integers(0, 4)),
    tile=st.tuples(st.integers(1, 16), st.integers(1, 16)),
)
def test_spans_and_jobs_cover_what_is_seen(
    lengths: tuple[int, ...],
    layout: str,
    softmax: Softmax,
    ranks: int,
    pair: tuple[int, int],
    tile: tuple[int, int],
) -> None:
    """Layers of spans hold each visible pair once; jobs visit each, and where they use no mask all is visible."""
    shards = laid(layout, lengths, ranks)
    queries = shards[pair[0] % ranks]
    held = (*shards, joined(shards))[pair[1] % (ranks + 1)]
    seen = rectangles(queries, held, softmax)
    wanted = shown(seen, queries.tokens, held.tokens)
    layers = stacked(seen, queries.tokens)
    parts = [spanned(torch.from_numpy(spans), held.tokens) for spans in layers]
    assert torch.equal(sum(parts, torch.zeros_like(wanted)), wanted)
    sizes = Sizes(*tile)
    for spans, part in zip(layers, parts, strict=True):
        check(torch.from_numpy(row_jobs(spans, sizes)), part, sizes.rows, sizes.keys)
        check(torch.from_numpy(key_jobs(spans, held.tokens, sizes)), part.T, sizes.keys, sizes.rows)


def shown(seen: tuple[Rectangle, ...], rows: int, keys: int) -> Tensor:
    """How often each pair is visible, [rows, keys]."""
    found = torch.zeros((rows, keys), dtype=torch.int64)
    for one in seen:
        behind = torch.arange(one.k_count) - torch.arange(one.q_count)[:, None]
        some = (behind <= (keys if one.high is None else one.high)) & (behind > (-rows if one.low is None else one.low))
        found[one.q_at : one.q_at + one.q_count, one.k_at : one.k_at + one.k_count] += some
    return found


def spanned(spans_2M: Tensor, keys: int) -> Tensor:
    """The same of one layer."""
    first, past = spans_2M[:, :, None]
    key = torch.arange(keys)
    return ((key >= first) & (key < past)).long()


def check(jobs: Tensor, pairs: Tensor, own: int, other: int) -> None:
    """No tile twice; every pair of a tile is within its steps; steps without a mask are visible whole."""
    visited = torch.zeros_like(pairs)
    for start, low, left, full, steps in jobs.tolist():
        mine = slice(start, start + own)
        visited[mine, low : low + steps * other] += 1
        whole = pairs[mine, low + left * other : low + (left + full) * other]
        assert bool((whole == 1).all()) and whole.shape[1] == full * other
    assert bool((visited <= 1).all()) and bool((visited >= pairs).all())
    assert sorted(jobs[:, 4].tolist(), reverse=True) == jobs[:, 4].tolist()


def test_a_tile_that_sees_nothing_has_no_job() -> None:
    """The later half of a zigzag rank against keys behind it: no program is started for the first half."""
    spans = stacked((Rectangle(64, 64, 0, 100),), 128)
    assert len(spans) == 1
    assert row_jobs(spans[0], Sizes(32, 16))[:, 0].tolist() == [64, 96]
    assert row_jobs(spans[0], Sizes(32, 16))[0].tolist() == [64, 0, 0, 6, 7]
    assert key_jobs(spans[0], 100, Sizes(32, 50)).tolist() == [[0, 64, 0, 2, 2], [50, 64, 0, 2, 2]]


def test_the_catalogue_ends_with_what_runs_everywhere() -> None:
    strange = torch.empty((1, 1, 300), dtype=torch.float64, device="meta")
    assert [offer.name for offer in BLOCKS if offer.claims(strange)] == [BLOCKS[-1].name]
    assert not block_for(torch.empty((1, 1, 8))).takes_delta
