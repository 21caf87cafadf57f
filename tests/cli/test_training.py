"""The corpus and the training loop."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fourfold.backends.communication import processes
from fourfold.compiler import api
from fourfold.compiler.corpus import Corpus, read_corpus
from fourfold.compiler.models.llama import Llama, LlamaConfig
from fourfold.compiler.training import Keep, Recipe, Row, sample, summary, train, trained_module
from fourfold.hardware.errors import UsageError
from fourfold.ir.plan import Precision

TEXTS = (b"abcabcabcabc" * 40, b"xyz" * 7, b"q")


@given(
    st.lists(st.binary(max_size=50), min_size=1, max_size=8), st.integers(2, 16), st.integers(4, 64), st.integers(0, 3)
)
def test_an_epoch_holds_every_window_once(texts: list[bytes], length: int, tokens: int, seed: int) -> None:
    if all(len(text) < 2 for text in texts):
        with pytest.raises(UsageError, match="holds no text"):
            Corpus.of(texts, length=length)
        return
    corpus = Corpus.of(texts, length=length)
    batch = corpus.batch(0, tokens=tokens, seed=seed)
    assert batch == corpus.batch(0, tokens=tokens, seed=seed)
    assert len(batch) == 1 or sum(map(len, batch)) <= tokens
    windows = [list(corpus.documents[d][a:b]) for d, a, b in corpus.windows]
    assert all(window in windows and 2 <= len(window) <= length for window in batch)
    everything = corpus.batch(0, tokens=10**6, seed=seed)
    assert sorted(everything) == sorted(windows)


def test_steps_of_an_epoch_do_not_repeat() -> None:
    corpus = Corpus.of([bytes(range(256)) * 4], length=16)
    seen = [tuple(row) for step in range(8) for row in corpus.batch(step, tokens=128)]
    assert len(seen) == 64 and all(seen.count(row) <= 4 for row in seen)
    assert corpus.batch(0, tokens=128) != corpus.batch(8, tokens=128)


def test_entropies() -> None:
    corpus = Corpus.of([b"abab" * 100], length=8)
    assert corpus.unigram == pytest.approx(math.log(2))
    assert corpus.bigram == pytest.approx(0, abs=1e-9)
    pydoc = read_corpus("pydoc", length=64)
    assert 2.2 < pydoc.bigram < 2.7 < 3.1 < pydoc.unigram < 3.5


def test_texts_of_every_form(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    (tmp_path / "b.jsonl").write_text('{"text": "one"}\n"two"\n\n')
    assert read_corpus(str(tmp_path / "a.txt"), length=4).documents == (b"hello",)
    assert read_corpus(str(tmp_path / "b.jsonl"), length=4).documents == (b"one", b"two")
    assert len(read_corpus(str(tmp_path), length=4).documents) == 2
    (tmp_path / "c.jsonl").write_text('{"txt": "one"}\n')
    with pytest.raises(UsageError, match=r"c\.jsonl:1 holds no text"):
        read_corpus(str(tmp_path / "c.jsonl"), length=4)


def test_the_rate_rises_and_falls() -> None:
    rates = [Recipe(steps=100, tokens=1, rate=1.0, warmup=10).rate_at(step) for step in range(100)]
    assert (
        rates[0] < 0.11
        and max(rates) == pytest.approx(rates[9], rel=0.05)
        and rates[-1] == pytest.approx(0.1, abs=0.01)
    )


def test_a_summary_leaves_the_first_steps_out() -> None:
    rows = [Row(i, 5.0 - i / 10, 1.0, 100, 9.0 if i < 5 else 1.0, 0.5, 3, 7) for i in range(20)]
    found = summary(rows)
    assert (found.seconds, found.tokens_per_second, found.first, found.compiled) == (1.0, 100.0, 5.0, 3)
    assert found.last == pytest.approx(sum(r.loss for r in rows[-10:]) / 10)


def _model() -> Llama:
    with torch.device("meta"):
        return Llama(LlamaConfig(256, 32, 1, 2, 1, 64))


def _losses(steps: int, keep: Keep) -> list[float]:
    corpus, recipe = Corpus.of(TEXTS, length=16), Recipe(steps=steps, tokens=128, rate=1e-2, warmup=2)
    workload = corpus.workload(tokens=128)
    answer = api.plan(_model(), workload, hardware="cpu-gloo@1", precision=Precision.fp32, top=0)
    program = api.compile(_model(), answer)
    program.init(0)
    rows = train(program, corpus, recipe, keep=keep)
    plain = trained_module(program, _model())
    assert plain is not None
    text = sample(plain, "abc", length=12, window=16, temperature=0.01)
    return [*(row.loss for row in rows), float(text.startswith("abcabcabcabc"))]


def test_it_learns_samples_and_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    def work(rank: int) -> tuple[list[float], list[float]]:
        whole = _losses(30, Keep(folder=tmp_path / "kept", every=20))
        return whole, _losses(30, Keep(resume=tmp_path / "kept"))

    ((whole, rest),) = processes.run(work, 1)
    *losses, continued = whole
    assert len(losses) == 30 and losses[-1] < 0.5 < losses[0] and continued == 1.0
    assert rest == [1.0], "the last checkpoint was taken at the end, so nothing is left to train"
