"""Tokens between the layout of regions and that of attention: the last of some ranks' go to others, and come back.

A rank gives or takes, never both. What it gives in attention's layout stands last there; what it takes stands last in
the regions'. Source: the remapping layer of Zeppelin (arXiv 2509.21841).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fourfold.backends.kernels.rows import gathered, scattered
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

    def outward(self, tensors: Sequence[Tensor], held: int) -> tuple[Tensor, ...]:
        """Tensors of attention's layout, of `held` rows, in the regions'."""
        return self._moved(tensors, held, self.gives, self.takes)

    def _moved(
        self, tensors: Sequence[Tensor], rows: int, leaving: tuple[Share, ...], coming: tuple[Share, ...]
    ) -> tuple[Tensor, ...]:
        """The last rows, as `leaving` says, go; `coming` stand last in what stays. One message a pair of ranks."""
        widths = [x.shape[1:].numel() for x in tensors]
        stay = rows - sum(tokens for _, tokens in leaving)
        sends, at = [], stay
        for peer, tokens in leaving:
            sends.append((peer, gathered([x[at : at + tokens] for x in tensors])))
            at += tokens
        expected = [Expected(peer, (tokens, sum(widths)), tensors[0].dtype) for peer, tokens in coming]
        handle = self.comm.exchange("remap", sends, expected, like=tensors[0])
        arrived = [scattered(message, tensors) for message in handle.wait()]
        kept = [x[:stay] for x in tensors]
        if not arrived:
            return tuple(kept)
        return tuple(torch.cat((x, *(message[i] for message in arrived))) for i, x in enumerate(kept))
