"""What is trained on: how long the sequences are, and how many tokens make one optimizer step."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fourfold.hardware.errors import UsageError


@dataclass(frozen=True, slots=True)
class Workload:
    """Sequence lengths of one typical step as ascending (length, count) pairs."""

    lengths: tuple[tuple[int, int], ...]

    @classmethod
    def fixed(cls, *, length: int, sequences: int) -> Workload:
        """Every step holds `sequences` sequences of `length` tokens."""
        if length < 1 or sequences < 1:
            raise UsageError(f"length {length} x {sequences} sequences is no workload; both must be at least 1")
        return cls(((length, sequences),))

    @classmethod
    def of(cls, lengths: Iterable[int]) -> Workload:
        """One step with exactly these sequences."""
        counted = tuple(sorted(Counter(int(n) for n in lengths).items()))
        if not counted or counted[0][0] < 1:
            raise UsageError("a workload needs at least one sequence, each of at least one token")
        return cls(counted)

    @classmethod
    def sample(cls, path: str | Path, *, tokens_per_step: int) -> Workload:
        """Lengths from a file (one per line, or a CSV whose first column is the length), thinned to `tokens_per_step`.

        The sample keeps the file's distribution: evenly spaced ranks of the sorted lengths. Raises UsageError.
        """
        found = sorted(_lengths(Path(path)))
        if found[0] > tokens_per_step:
            raise UsageError(
                f"{tokens_per_step:,} tokens a step hold no sequence of {path}: its shortest is {found[0]:,}"
            )
        count = max(1, round(tokens_per_step / (sum(found) / len(found))))
        return cls.of(found[min(len(found) - 1, int((i + 0.5) * len(found) / count))] for i in range(count))

    @property
    def tokens(self) -> int:
        """Tokens of one step."""
        return sum(length * count for length, count in self.lengths)

    @property
    def sequences(self) -> int:
        """Sequences of one step."""
        return sum(count for _, count in self.lengths)

    @property
    def longest(self) -> int:
        """The longest sequence."""
        return self.lengths[-1][0]

    @property
    def pairs(self) -> int:
        """Causal (query, key) pairs of one step: n (n + 1) / 2 a sequence."""
        return sum(count * length * (length + 1) // 2 for length, count in self.lengths)

    def visible(self, *, causal: bool, window: int | None) -> float:
        """(query, key) pairs of one step that such an attention sees."""
        return sum(count * visible(length, causal=causal, window=window) for length, count in self.lengths)

    def __str__(self) -> str:
        if len(self.lengths) == 1:
            return f"{self.sequences} x {self.longest} tokens"
        return f"{self.sequences} sequences of {self.lengths[0][0]} to {self.longest}, {self.tokens} tokens"


def visible(length: float, *, causal: bool, window: int | None = None) -> float:
    """(query, key) pairs of one document: token i sees j <= i where causal, and j > i - window with a window."""
    past = length * (length + 1) / 2
    if window is not None and window < length:
        past -= (length - window) * (length - window + 1) / 2
    return past if causal else past + length * (length - 1) / 2


def _lengths(path: Path) -> list[int]:
    """The lengths in a file; its first line may be a heading, and lines that begin with # say what they are.

    Raises UsageError naming the line that holds none.
    """
    try:
        rows = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
    except OSError as error:
        raise UsageError(f"lengths file {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is no text: write one length a line") from None
    first = [(number, row[0].strip()) for number, row in enumerate(rows, 1) if row]
    words = [(number, word) for number, word in first if word and not word.startswith("#")]
    lengths = [(number, word, _length(word)) for number, word in words]
    wrong = [(number, word) for number, word, length in lengths[1:] if length is None]
    if lengths and lengths[0][2] is None and not lengths[0][1][0].isalpha():
        wrong.insert(0, lengths[0][:2])
    if wrong:
        raise UsageError(f"{path}:{wrong[0][0]} holds {wrong[0][1]!r}: write one length a line, of at least 1 token")
    found = [length for _, _, length in lengths if length is not None]
    if not found:
        raise UsageError(f"{path} holds no lengths: write one number a line")
    return found


def _length(word: str) -> int | None:
    """A number of tokens, or None where the word is not one."""
    if not word.replace(".", "", 1).isdecimal() or float(word) < 1:
        return None
    return int(float(word))
