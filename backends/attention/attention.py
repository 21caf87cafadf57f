"""Attention of one micro-step on one rank, one node for autograd: parts on their queues, and a remap around them all.

Parts run in order; on a GPU those that other ranks share have streams of their own, so that their messages pass while
local documents are worked on. Source of the order: Zeppelin's attention engine (arXiv 2509.21841), slowest first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fourfold.backends.attention.remap import Remap
from fourfold.backends.attention.sequence import Key, Operands, Part
from fourfold.backends.kernels.attention import Kept
from fourfold.backends.kernels.documents import Documents
from fourfold.ir.sequence.method import Gradients, Saved
from fourfold.ir.sequence.rectangles import Softmax


@dataclass(frozen=True, slots=True)
class Attention:
    """What a micro-step's attentions run over: parts that stand one behind the other, and a remap.

    run: tokens of this rank's regions, padding left out. streams: of each queue, on a GPU. call: of the graph, which
    one attends.
    """

    parts: tuple[Part, ...]
    run: int
    remap: Remap | None = None
    streams: tuple[torch.cuda.Stream, ...] = ()
    call: int = 0

    def at(self, call: int) -> Attention:
        """The same for one call of the graph."""
        return replace(self, call=call)

    @property
    def held(self) -> int:
        """Tokens of its attention."""
        return sum(part.tokens for part in self.parts)


Held = Documents | Attention
"""What attention runs over: documents that are whole on this rank, or whatever else a batch plan put there."""


@dataclass(frozen=True, slots=True)
class Work:
    """One attention of the model over a micro-step."""

    over: Attention
    softmax: Softmax
    key: Key

    def operands(self, tensors: Operands) -> Operands:
        """q, k and v in attention's layout, without padding."""
        q, k, v = self._inward(tensors)
        return q, k, v

    def forward(self, operands: Operands, tokens: int) -> tuple[Tensor, list[Saved]]:
        """Out of all parts, followed by no values up to `tokens`, and what each part saves beside out and operands."""
        out = self._room(operands[0], tokens)
        rests: list[Saved] = []
        with _Queues.over(self.over) as queues:
            for part, rows in self._rows():
                with queues.of(part):
                    found, rest = part.forward(_cut(operands, rows), self.softmax, self.key)
                    out[rows].copy_(found)
                    rests.append(rest)
        return out, rests

    def backward(self, grad: Tensor, operands: Operands, out: Tensor, rests: list[Saved]) -> Gradients:
        """Gradients in the regions' layout, padding without any."""
        (grad_out,) = self._inward((grad,))
        into = tuple(self._room(x, self.size(grad.shape[0])) for x in operands)
        with _Queues.over(self.over) as queues:
            for (part, rows), rest in zip(self._rows(), rests, strict=True):
                with queues.of(part):
                    mine = grad_out[rows].contiguous(), _cut(operands, rows), out[rows], rest
                    for there, found in zip(into, part.backward(*mine, self.softmax, self.key), strict=True):
                        there[rows].copy_(found)
        dq, dk, dv = self.outward(into, grad.shape[0])
        return dq, dk, dv

    def kept(self, results: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """What backward is given of operands and out: no row of them where every part keeps its own."""
        if not all(part.keeps for part in self.over.parts):
            return results
        return tuple(x.new_empty((0, *x.shape[1:])) for x in results)

    def size(self, tokens: int) -> int:
        """Rows of attention's tensors where the regions' have `tokens`: of the same where nothing is moved."""
        return tokens if self.over.remap is None else self.over.held

    def outward(self, tensors: tuple[Tensor, ...], tokens: int) -> tuple[Tensor, ...]:
        """Tensors of attention's layout in the regions', padded with zeros to so many tokens."""
        if self.over.remap is None:
            return tensors
        return self.over.remap.outward(tensors, self.over.held, tokens)

    def _inward(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if self.over.remap is not None:
            return self.over.remap.inward(tensors, self.over.run)
        return tuple(x.narrow(0, 0, self.over.run) for x in tensors)

    def _room(self, like: Tensor, tokens: int) -> Tensor:
        """A tensor of `tokens` rows like those of `like`, to be written to; rows that no part has are zero."""
        found = like.new_empty((tokens, *like.shape[1:]))
        found[self.over.held :].zero_()
        return found

    def _rows(self) -> Iterator[tuple[Part, slice]]:
        at = 0
        for part in self.over.parts:
            yield part, slice(at, at + part.tokens)
            at += part.tokens


def attend_parts(q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, work: Work, *, kept: Kept | None = None) -> Tensor:
    """Attention of this rank's tokens, [T, H, D]; zero where the tokens are padding. Differentiable in q, k and v.

    A collective of every team, and of the ranks of a remap, forward and backward. kept: keeps the results, and gives
    them back when the block around it is replayed for its backward.
    """
    known = kept.take() if kept is not None else None
    if known is not None:
        again: Tensor = _Again.apply(q_THD, k_TGD, v_TGD, work, known)  # type: ignore[no-untyped-call]
        return again
    told: list[Tensor] = []
    out: Tensor = _Attended.apply(q_THD, k_TGD, v_TGD, work, told)  # type: ignore[no-untyped-call]
    if kept is not None:
        kept.keep(told)
    return out


class _Attended(torch.autograd.Function):
    """All parts. What a replay needs again is put into `told`: out, and what each part saved beside the operands."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, work: Work, told: list[Tensor]) -> Tensor:
        operands = work.operands((q, k, v))
        out, rests = work.forward(operands, work.size(q.shape[0]))
        _save(ctx, work, operands, out, rests)
        ctx.counts = [len(rest) for rest in rests]
        told += [out.detach(), *(x.detach() for rest in rests for x in rest)]
        return work.outward((out,), q.shape[0])[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        q, k, v, out, *flat = ctx.saved_tensors
        rests, at = [], 0
        for count in ctx.counts:
            rests.append(tuple(flat[at : at + count]))
            at += count
        return (*ctx.work.backward(grads[0], (q, k, v), out, rests), None, None)


class _Again(torch.autograd.Function):
    """Attention whose results are known: saves what `_Attended` saves, in its order, and computes nothing.

    The graph of a replay is never walked back: what it saves goes to the nodes of the first run.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, work: Work, known: Saved) -> Tensor:
        out, *rest = known
        _save(ctx, work, work.operands((q, k, v)), out, [tuple(rest)])
        return work.outward((out.view_as(out),), q.shape[0])[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise AssertionError("a replay of attention was differentiated")


def _save(ctx: Any, work: Work, operands: Operands, out: Tensor, rests: list[Saved]) -> None:
    ctx.work = work
    ctx.save_for_backward(*work.kept((*operands, out)), *(x for rest in rests for x in rest))


@dataclass(frozen=True, slots=True)
class _Queues:
    """Streams beside the current one, by queue; each begins when that has come here, and it goes on when all are done.

    Empty where a single queue is used: nothing would pass beside it.
    """

    streams: Mapping[int, torch.cuda.Stream]

    @classmethod
    def over(cls, attention: Attention) -> _Queues:
        used = {part.queue for part in attention.parts}
        if len(used) < 2 or not attention.streams:
            return cls({})
        return cls({queue: attention.streams[queue] for queue in used if queue is not None})

    def __enter__(self) -> _Queues:
        for stream in self.streams.values():
            stream.wait_stream(torch.cuda.current_stream())
        return self

    def __exit__(self, *_: object) -> None:
        for stream in self.streams.values():
            torch.cuda.current_stream().wait_stream(stream)

    def of(self, part: Part) -> AbstractContextManager[Any]:
        """Where a part runs."""
        stream = None if part.queue is None else self.streams.get(part.queue)
        return nullcontext() if stream is None else torch.cuda.stream(stream)


def _cut(tensors: Operands, rows: slice) -> Operands:
    q, k, v = tensors
    return q[rows], k[rows], v[rows]
