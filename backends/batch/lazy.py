"""A global batch that every rank knows by its lengths, and of which it reads only the tokens it runs.

source.lengths, source.identity          the same on every rank: compared, like the digests of a batch that is there
spans_of(turns)                          which tokens of which sequences a rank runs
parts(source, spans, ..)                 these, read: each is indexed by runs as a whole document is
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isclose
from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor

from fourfold.backends.batch.agreement import compare
from fourfold.backends.batch.placing import Turn
from fourfold.backends.batch.sequences import IGNORED, Limits, rows, short
from fourfold.backends.communication.aside import Aside
from fourfold.hardware.errors import FourfoldError, UsageError
from fourfold.ir.sequence.tokens import Run

Span = tuple[int, int]
"""Tokens `start` to `stop` of a sequence."""


class Source(Protocol):
    """A global batch, the same on every rank, whose tokens lie somewhere else.

    lengths: of its sequences. identity: a text that no other contents of these lengths have, such as a file's digest
    and the documents taken from it; it is compared between ranks, and the tokens are not. A source whose `read` gives
    labels or weights has `targets` too: for each sequence the sum of the weights of its supervised targets (how many
    there are, without weights), which the loss is divided by before anything is read; else it is length - 1.
    """

    @property
    def lengths(self) -> Sequence[int]:
        """Of every sequence, in tokens."""

    @property
    def identity(self) -> str:
        """What the tokens are."""

    def read(self, sequence: int, start: int, stop: int) -> Any:
        """The tokens of a stretch, in any form that a sequence of a batch may have; labels at their own token.

        It is asked for one token beyond what is run, as the target of a token is the label of the next.
        """


def is_source(batch: Any) -> TypeGuard[Source]:
    """Whether a batch is to be read by piece."""
    return all(hasattr(batch, name) for name in ("lengths", "identity", "read"))


@dataclass(frozen=True, slots=True)
class Rows:
    """One row of numbers of a sequence, known over some spans; indexed by slices that lie inside one of them."""

    length: int
    held: tuple[tuple[int, Tensor], ...]

    def __getitem__(self, wanted: slice) -> Tensor:
        indices = range(self.length)[wanted]
        for first, row in self.held:
            if not indices or (first <= indices[0] and indices[-1] < first + len(row)):
                return row[indices.start - first : max(0, indices.stop - first) : indices.step] if indices else row[:0]
        raise IndexError(f"tokens {indices.start} to {indices[-1] + 1} were not read")


@dataclass(frozen=True, slots=True)
class Part:
    """Spans of one sequence, indexed as a Document is: tokens, the next token of each, loss weights."""

    tokens: Rows
    targets: Rows
    weights: Rows

    def __len__(self) -> int:
        """Of the whole sequence."""
        return self.tokens.length


def portion(source: Source, sequence: int, spans: Iterable[Span], limits: Limits | None = None) -> Part:
    """These spans of a sequence, read now. Raises UsageError for what `read` gives that no batch may hold."""
    length = source.lengths[sequence]
    found: tuple[list[tuple[int, Tensor]], ...] = ([], [], [])
    for start, stop in spans:
        for row, values in zip(found, _read(source, sequence, (start, stop), limits or Limits()), strict=True):
            row.append((start, values))
    return Part(*(Rows(length, tuple(row)) for row in found))


def _read(source: Source, sequence: int, span: Span, limits: Limits) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, targets and weights of one span: the last target is the label after it, or none at the end."""
    start, stop = span
    length = source.lengths[sequence]
    past = min(stop + 1, length)
    given = source.read(sequence, start, past)
    tokens, labels, weights = rows(f"{sequence}[{start}:{past}]", given, limits)
    if len(tokens) != past - start:
        raise UsageError(f"tokens {start} to {past} of sequence {sequence} were asked for, and {len(tokens)} were read")
    if past == stop:
        labels, weights = torch.cat((labels, torch.tensor([IGNORED]))), torch.cat((weights, torch.zeros(1)))
    targets = labels[1:]
    weights = torch.where(targets == IGNORED, 0.0, weights[1:])
    said = _targets(source)[sequence]
    if span == (0, length) and not isclose(float(weights.double().sum()), said, rel_tol=1e-6):
        raise UsageError(
            f"sequence {sequence} has supervised targets of weight {float(weights.sum()):g}, and its source says "
            f"{said:g}: a source that gives labels or weights says so in `targets`"
        )
    return tokens[: stop - start], targets, weights


def supervised(source: Source) -> float:
    """What the summed loss of the whole batch is divided by."""
    return float(sum(_targets(source)))


def _targets(source: Source) -> Sequence[float]:
    given: Sequence[float] | None = getattr(source, "targets", None)
    return [length - 1 for length in source.lengths] if given is None else given


def spans_of(turns: Iterable[Turn]) -> dict[int, tuple[Span, ...]]:
    """The tokens of each sequence that one rank's regions run, over all its turns; those moved to it, too."""
    found: dict[int, list[Run]] = {}
    for run in (run for turn in turns for run in turn.run.runs):
        found.setdefault(run.document, []).append(run)
    return {sequence: merged(runs) for sequence, runs in sorted(found.items())}


def merged(runs: Iterable[Run]) -> tuple[Span, ...]:
    """The fewest spans that hold all tokens of the runs; one of a step over 1 is read with what lies between."""
    found: list[list[int]] = []
    for start, stop in sorted((run.start, run.start + (run.count - 1) * run.step + 1) for run in runs):
        if found and start <= found[-1][1]:
            found[-1][1] = max(found[-1][1], stop)
        else:
            found.append([start, stop])
    return tuple((start, stop) for start, stop in found)


def agreed_lengths(source: Source, limits: Limits, aside: Aside) -> tuple[int, ...]:
    """The lengths of the batch, the same on every rank. A collective.

    Raises, on every rank at once: UsageError where a rank's own source is bad; RunError naming the first rank whose
    source is bad or unlike rank 0's.
    """
    lengths: tuple[int, ...] = ()
    shown: tuple[int, int] | None = None
    error: FourfoldError | None = None
    try:
        lengths = _lengths(source, limits)
        about = repr((source.identity, [float(one) for one in _targets(source)]))
        shown = short([repr(lengths).encode()]), short([about.encode()])
    except FourfoldError as one:
        error = one
    except Exception as one:
        error = UsageError(f"the batch cannot be read: {type(one).__name__}: {one}")
    compare(shown, error, aside, contents="identity or targets of its source")
    return lengths


def parts(source: Source, spans: Mapping[int, Sequence[Span]], limits: Limits, aside: Aside) -> dict[int, Part]:
    """The sequences of which this rank runs tokens, and these tokens. A collective: a read that fails, fails for all.

    Raises the rank's own UsageError, or RunError naming the first rank that could not read.
    """
    found: dict[int, Part] = {}
    error: FourfoldError | None = None
    try:
        found = {sequence: portion(source, sequence, each, limits) for sequence, each in spans.items()}
    except FourfoldError as one:
        error = one
    except Exception as one:
        error = UsageError(f"the batch cannot be read: {type(one).__name__}: {one}")
    compare(None if error else (0, 0), error, aside, contents="tokens")
    return found


def _lengths(source: Source, limits: Limits) -> tuple[int, ...]:
    found = tuple(int(length) for length in source.lengths)
    if not found or min(found) < 1:
        raise UsageError("the batch is empty: step() needs at least one sequence of at least one token, and no others")
    if len(_targets(source)) != len(found):
        raise UsageError(f"the source has {len(found)} lengths and {len(_targets(source))} targets: one each is needed")
    if limits.positions is not None and max(found) > limits.positions:
        raise UsageError(
            f"sequence {found.index(max(found))} has {max(found)} tokens and the model's table of positions "
            f"{limits.positions}: cut it"
        )
    return found
