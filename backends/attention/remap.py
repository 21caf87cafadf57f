"""Tokens between the layout of regions and that of attention: the last of some ranks' go to others, and come back.

A rank gives or takes, never both. What it gives in attention's layout stands last there; what it takes stands last in
the regions'. Source: the remapping layer of Zeppelin (arXiv 2509.21841).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fourfold.backends.kernels.rows import gathered, joined
from fourfold.ir.comm import Comm, Expected

Share = tuple[int, int]
"""A rank of the pool, and how many tokens."""


@dataclass(frozen=True, slots=True)
class Remap:
    """One rank's part: `gives` of its attention's tokens to other ranks' regions, or `takes` from theirs."""

    comm: Comm
    gives: tuple[Share, ...] = ()
    takes: tuple[Share, ...] = ()

    @property
    def given(self) -> int:
        """Tokens of its attention that its regions do not run."""
        return sum(tokens for _, tokens in self.gives)

    @property
    def taken(self) -> int:
        """Tokens of its regions that its attention does not hold."""
        return sum(tokens for _, tokens in self.takes)

    def inward(self, tensors: Sequence[Tensor], run: int) -> tuple[Tensor, ...]:
        """Tensors [tokens, ..] of the regions' layout, of which `run` rows are no padding, in attention's."""
        return self._moved(tensors, run, self.takes, self.gives)

    def outward(self, tensors: Sequence[Tensor], held: int, tokens: int) -> tuple[Tensor, ...]:
        """Tensors of attention's layout, of `held` rows, in the regions', padded with zeros to so many tokens."""
        return self._moved(tensors, held, self.gives, self.takes, tokens)

    def _moved(
        self,
        tensors: Sequence[Tensor],
        rows: int,
        leaving: tuple[Share, ...],
        coming: tuple[Share, ...],
        tokens: int = 0,
    ) -> tuple[Tensor, ...]:
        """The last rows, as `leaving` says, go; `coming` stand last in what stays, and zeros up to `tokens` rows.

        One message a pair of ranks, all of them parts of one tensor.
        """
        width = sum(x.shape[1:].numel() for x in tensors)
        counts = [count for _, count in leaving]
        stay = rows - sum(counts)
        sends: list[tuple[int, Tensor]] = []
        if leaving:
            messages = gathered([x[stay:rows] for x in tensors]).split(counts)  # type: ignore[no-untyped-call]
            sends = [(peer, message) for (peer, _), message in zip(leaving, messages, strict=True)]
        expected = [Expected(peer, (count, width), tensors[0].dtype) for peer, count in coming]
        arrived = self.comm.exchange("remap", sends, expected, like=tensors[0]).wait()
        kept = [x[:stay] for x in tensors]
        if not coming and not tokens:
            return tuple(kept)
        return joined(kept, arrived, tokens or stay + sum(count for _, count in coming))
