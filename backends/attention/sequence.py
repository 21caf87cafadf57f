"""What attention of one micro-step runs over on one rank: whole documents of its own, or those a team shares.

Each is a part: tokens that stand together, a queue, and a forward and backward that `attention.py` calls.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fourfold.backends.kernels.attention import chosen_for
from fourfold.backends.kernels.attention_case import Softmax as Scores
from fourfold.backends.kernels.block import block_for
from fourfold.backends.kernels.documents import Documents
from fourfold.ir.comm import Comm
from fourfold.ir.sequence.method import Carried, Gradients, Job, Method, Saved
from fourfold.ir.sequence.rectangles import Softmax
from fourfold.ir.sequence.tokens import Shard

Key = tuple[int, str]
"""One attention of the model: its call and its node."""
Operands = tuple[Tensor, Tensor, Tensor]
"""q [T, H, D], k and v [T, G, D]."""


@dataclass(frozen=True, slots=True)
class Chain:
    """A sequence that passes through this rank chunk by chunk: `rows` of its tokens, and what each attention keeps."""

    rows: int
    carried: dict[Key, Carried] = field(default_factory=dict)

    def of(self, key: Key) -> Carried:
        """What one attention keeps of it."""
        return self.carried.setdefault(key, Carried(self.rows))


@dataclass(frozen=True, slots=True)
class Local:
    """Documents that are whole on this rank, packed."""

    documents: Documents
    queue: int | None = None

    @property
    def tokens(self) -> int:
        """Of all its documents."""
        return self.documents.tokens

    @property
    def keeps(self) -> bool:
        """Whether its backward needs neither operands nor out, but what it has saved."""
        return False

    def forward(self, operands: Operands, softmax: Softmax, key: Key) -> tuple[Tensor, Saved]:
        """Out, and what backward needs beside it and the operands."""
        scores = Scores(softmax.scale, softmax.causal, softmax.window)
        kernel = chosen_for(*operands[:2], self.documents, scores)
        out, lse = kernel.forward(*operands, self.documents, scores)
        return out, (lse,)

    def backward(
        self, grad: Tensor, operands: Operands, out: Tensor, rest: Saved, softmax: Softmax, key: Key
    ) -> Gradients:
        """Gradients of the operands."""
        scores = Scores(softmax.scale, softmax.causal, softmax.window)
        kernel = chosen_for(*operands[:2], self.documents, scores)
        return kernel.backward(grad, *operands, out, rest[0], self.documents, scores)


@dataclass(frozen=True, slots=True)
class Group:
    """Documents that a team shares: the ranks, what each holds, and how they go about it.

    `ulysses` and `travel` are those of a Job; of a chunk, `earlier` too, and `chain` keeps what `carried` is there.
    known: what all its jobs share.
    """

    comm: Comm
    shards: tuple[Shard, ...]
    method: Method
    ulysses: int = 1
    travel: torch.dtype | None = None
    earlier: tuple[Shard, ...] = ()
    chain: Chain | None = None
    queue: int | None = None
    known: dict[Hashable, object] = field(default_factory=dict, compare=False, repr=False)

    @property
    def tokens(self) -> int:
        """Of this rank."""
        return self.shards[self.comm.rank].tokens

    @property
    def keeps(self) -> bool:
        """As a part of documents says; of a method that saves tensors of its own."""
        return not self.method.plain

    def job(self, softmax: Softmax, key: Key) -> Job:
        """One attention of the group."""
        carried = None if self.chain is None else self.chain.of(key)
        return Job(self.shards, softmax, self.ulysses, self.travel, self.earlier, carried, self.known)

    def forward(self, operands: Operands, softmax: Softmax, key: Key) -> tuple[Tensor, Saved]:
        """Out, and what backward needs beside it and the operands; a collective of the group."""
        job = self.job(softmax, key)
        out, saved = self.method.forward(self.comm, block_for(operands[0]), *operands, job)
        return out, saved[2 * self.method.plain + self.method.merges :]

    def backward(
        self, grad: Tensor, operands: Operands, out: Tensor, rest: Saved, softmax: Softmax, key: Key
    ) -> Gradients:
        """Gradients of the operands; a collective of the group. A chain has no use for its first chunk after it."""
        job = self.job(softmax, key)
        found = self.method.backward(self.comm, block_for(grad), grad, self._saved(operands, out, rest, job), job)
        if self.chain is not None and not self.earlier[self.comm.rank].tokens:
            del self.chain.carried[key]
        return found

    def _saved(self, operands: Operands, out: Tensor, rest: Saved, job: Job) -> Saved:
        """What the method's forward saved, put together again."""
        if not self.method.plain:
            return rest
        results = (out, *rest) if self.method.merges else rest
        return (operands[0], job.again(self.comm.rank, *operands[1:]), *results)


Part = Local | Group
