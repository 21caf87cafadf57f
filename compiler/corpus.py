"""Text to train on, as bytes: documents cut to windows, and the entropies any model of it is measured against."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from fourfold.hardware.errors import UsageError
from fourfold.ir.workload import Workload

SYMBOLS = 256
"""A token is a byte."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents of bytes, and their windows (document, start, stop); a document's last may be shorter than `length`."""

    name: str
    documents: tuple[bytes, ...] = field(repr=False)
    length: int
    windows: tuple[tuple[int, int, int], ...] = field(repr=False)

    @classmethod
    def of(cls, documents: Sequence[bytes], *, length: int, name: str = "text") -> Corpus:
        """Cuts the documents to windows. Raises UsageError when nothing can be predicted in them."""
        if length < 2:
            raise UsageError(f"a window of {length} tokens predicts nothing; give a length of at least 2")
        windows = tuple(
            (i, start, min(start + length, len(text)))
            for i, text in enumerate(documents)
            for start in range(0, len(text), length)
            if len(text) - start >= 2
        )
        if not windows:
            raise UsageError(f"{name} holds no text of at least two bytes")
        return cls(name, tuple(documents), length, windows)

    def batch(self, step: int, *, tokens: int, seed: int = 0) -> list[list[int]]:
        """The global batch of a step: windows up to `tokens` in all, shuffled each epoch; every rank gets the same."""
        sizes = [stop - start for _, start, stop in self.windows]
        per_epoch = max(1, sum(sizes) // tokens)
        epoch, place = divmod(step, per_epoch)
        order = list(range(len(sizes)))
        random.Random(f"{seed}:{epoch}").shuffle(order)
        found: list[list[int]] = []
        room = 0
        for index in order[place * len(order) // per_epoch :]:
            room += sizes[index]
            if found and room > tokens:
                break
            document, start, stop = self.windows[index]
            found.append(list(self.documents[document][start:stop]))
        return found

    def workload(self, *, tokens: int, seed: int = 0) -> Workload:
        """The lengths of a typical batch: those of the first."""
        return Workload.of(len(window) for window in self.batch(0, tokens=tokens, seed=seed))

    @property
    def unigram(self) -> float:
        """Entropy of a byte, nats: the loss of a model that knows only how frequent each is."""
        counts = Counter(b for text in self.documents for b in text)
        total = sum(counts.values())
        return -sum(n / total * math.log(n / total) for n in counts.values())

    @property
    def bigram(self) -> float:
        """Entropy of a byte given the one before it, nats."""
        pairs = Counter(pair for text in self.documents for pair in pairwise(text))
        first = Counter[int]()
        for (before, _), n in pairs.items():
            first[before] += n
        total = sum(pairs.values())
        return -sum(n / total * math.log(n / first[before]) for (before, _), n in pairs.items())


def read_corpus(source: str, *, length: int) -> Corpus:
    """The corpus that `source` names: `pydoc` (the topics of Python's help), a text file, a .jsonl file, or a folder.

    A .jsonl file holds one document a line, a string or an object with the key "text"; a folder one a file. Raises
    UsageError when it cannot be read.
    """
    if source == "pydoc":
        from pydoc_data.topics import topics

        return Corpus.of([topics[k].encode() for k in sorted(topics)], length=length, name="pydoc")
    try:
        documents = _documents(Path(source))
    except OSError as error:
        raise UsageError(
            f"data {source!r} cannot be read: {error.strerror}; give a text file, a .jsonl file, a folder, or pydoc"
        ) from None
    return Corpus.of(documents, length=length, name=source)


def _documents(path: Path) -> list[bytes]:
    if path.is_dir():
        return [file.read_bytes() for file in sorted(path.iterdir()) if file.is_file()]
    if path.suffix == ".jsonl":
        lines = path.read_text(encoding="utf-8").splitlines()
        return [_line(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    return [path.read_bytes()]


def _line(path: Path, number: int, line: str) -> bytes:
    try:
        value = json.loads(line)
    except ValueError:
        raise UsageError(f"{path}:{number} is no JSON") from None
    text = value.get("text") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise UsageError(f'{path}:{number} holds no text: write a string, or an object with the key "text"')
    return text.encode()
