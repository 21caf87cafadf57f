"""Reshapes, transposes, slices and constants of the exported graph as the few ops of ours that move elements."""

from __future__ import annotations

from math import prod
from typing import Any

from fourfold.compiler.capture.translate.translation import Length, Translation
from fourfold.ir.graph import TOKENS, Ref, Tensor

FAR = 2**62
ORDERED = "packed documents are not laid out that way"


def view(t: Translation) -> Ref:
    """All reshapes are one op; its target is its shape."""
    source: Ref = t.args["self"] if "self" in t.args else t.args["input"]
    return t.view(source, t.value().shape)


def permute(t: Translation) -> Ref:
    """Transposes and permutations are one op; the identity is none."""
    source: Ref = t.args["self"]
    rank = len(t.shape(source))
    order = list(range(rank))
    if "dims" in t.args:
        order = [d % rank for d in t.args["dims"]]
    elif rank > 1:
        a, b = (t.args.get("dim0", t.args.get("axis0", 0)), t.args.get("dim1", t.args.get("axis1", 1)))
        a, b = (-2, -1) if t.name in ("mT", "adjoint") else (a, b)
        order[a], order[b] = order[b], order[a]
    return source if order == list(range(rank)) else t.emit("permute", source, tuple(order))


def movedim(t: Translation) -> Ref:
    """One or several dims put elsewhere, the rest in order."""
    source: Ref = t.args["self"]
    rank = len(t.shape(source))
    pairs = [(x,) if isinstance(x, int) else x for x in (t.args["source"], t.args["destination"])]
    taken = {to % rank: start % rank for start, to in zip(*pairs, strict=True)}
    rest = iter(d for d in range(rank) if d not in taken.values())
    return t.emit("permute", source, tuple(taken[i] if i in taken else next(rest) for i in range(rank)))


def expand(t: Translation) -> Ref:
    """Identity when nothing grows; the token dim cannot be made by stretching."""
    source: Ref = t.args["self"]
    before, after = t.shape(source), t.value().shape
    if before == after:
        return source
    if any(size < 0 for size in after) and not any(size < 0 for size in before):
        t.refuse("stretches a tensor over the sequence: let broadcasting do it")
    return t.emit("expand", source)


def piece(t: Translation) -> Ref:
    """A slice; the first tokens of a table are rows picked by position."""
    source: Ref = t.args["self"]
    dim = t.dim(source)
    size = t.shape(source)[dim]
    start, stop = t.args.get("start") or 0, t.args.get("end")
    stop = FAR if stop is None else stop
    if isinstance(start, Length) or isinstance(stop, Length):
        t.refuse(f"slices at a place that depends on the sequence length: {ORDERED}")
    if stop == TOKENS and start == 0 and size >= 0 and t.flat.symbolic(t.node.args[3]):
        return rows(t, source, dim)
    if size < 0 and not (start == 0 and (stop >= FAR or stop == size) and t.args.get("step", 1) == 1):
        t.refuse(f"slices the sequence: {ORDERED}")
    if size < 0:
        return source
    start, stop = (max(x + size, 0) if x < 0 else min(x, size) for x in (start, stop))
    return strided(t, source, dim, start, stop, t.args.get("step", 1))


def narrow(t: Translation) -> Ref:
    """A slice by its length."""
    source: Ref = t.args["self"]
    dim, start, length = t.dim(source), t.args["start"], t.args["length"]
    size = t.shape(source)[dim]
    if size < 0 or not isinstance(start, int) or not isinstance(length, int):
        t.refuse(f"narrows the sequence: {ORDERED}")
    if length < 0 and start == 0:
        return rows(t, source, dim)
    start %= size
    return strided(t, source, dim, start, start + length, 1)


def strided(t: Translation, source: Ref, dim: int, start: int, stop: int, step: int) -> Ref:
    """Elements start, start + step, .. of a dim: with a step, one column of the dim seen as rows of `step`."""
    shape, dtype = t.shape(source), t.flat.dtype(source)
    if step == 1:
        whole = start == 0 and stop == shape[dim]
        return source if whole else t.emit("slice", source, dim, start, stop)
    if shape[dim] % step or start >= step or stop <= shape[dim] - step + start:
        t.refuse(f"slices {start}:{stop}:{step} of {shape[dim]}: with a step, all of a multiple of it must be covered")
    split = t.view(source, (*shape[:dim], shape[dim] // step, step, *shape[dim + 1 :]))
    value = Tensor((*shape[:dim], shape[dim] // step, *shape[dim + 1 :]), dtype)
    return t.emit("select", split, dim + 1, start, value=value)


def rows(t: Translation, source: Ref, dim: int) -> Ref:
    """`table[:s]` --> table rows at the tokens' positions."""
    shape, dtype = t.shape(source), t.flat.dtype(source)
    if any(size != 1 for size in shape[:dim]):
        t.refuse(f"takes the first tokens of a table along dim {dim}: put the positions first")
    width = prod(shape[dim + 1 :])
    table = t.view(source, (shape[dim], width))
    found = t.emit("embedding", table, Ref("positions"), value=Tensor((TOKENS, width), dtype))
    return t.view(found, t.value().shape)


def select(t: Translation) -> Ref:
    """One index of a dim."""
    source: Ref = t.args["self"]
    dim, index = t.dim(source), t.args["index"]
    size = t.shape(source)[dim]
    if size < 0:
        t.refuse(f"picks one token of the sequence: {ORDERED}")
    return t.emit("select", source, dim, index % size)


def pieces(t: Translation) -> Any:
    """chunk, split, unbind: one slice (or select) each."""
    source: Ref = t.args["self"]
    dim = t.dim(source)
    if t.shape(source)[dim] < 0:
        t.refuse(f"splits the sequence: {ORDERED}")
    values = [t.flat.packed(v, t.node) for v in t.node.meta["val"]]
    if t.name == "unbind":
        return tuple(t.emit("select", source, dim, i, value=v) for i, v in enumerate(values))
    found, start = [], 0
    for value in values:
        found.append(t.emit("slice", source, dim, start, start + value.shape[dim], value=value))
        start += value.shape[dim]
    return tuple(found)


def cat(t: Translation) -> Ref:
    """Joined along one dim; legacy empty tensors join nothing."""
    tensors = tuple(x for x in t.args["tensors"] if t.shape(x) != (0,))
    dim = t.args.get("dim", 0) % len(t.value().shape)
    if len(tensors) == 1:
        only: Ref = tensors[0]
        return only
    if any(t.shape(x)[dim] < 0 for x in tensors):
        t.refuse(f"joins tensors along the sequence: {ORDERED}")
    return t.emit("cat", tensors, dim)


def stack(t: Translation) -> Ref:
    """Joined along a new dim."""
    return t.emit("stack", t.args["tensors"], t.args.get("dim", 0) % len(t.value().shape))


def repeat_interleave(t: Translation) -> Ref:
    """Each element of one dim repeated a fixed number of times."""
    source: Ref = t.args["self"]
    count, dim = t.args.get("repeats"), t.args.get("dim")
    if not isinstance(count, int) or dim is None:
        t.refuse("uses repeat_interleave with a tensor or without a dim: give a number and a dim")
    dim %= len(t.shape(source))
    if count != 1 and t.shape(source)[dim] < 0:
        t.refuse(f"repeats tokens of the sequence: {ORDERED}")
    return source if count == 1 else t.emit("repeat", source, count, dim)


def tile(t: Translation) -> Ref:
    """`x.repeat(1, 1, n)`: copies side by side, a stretched dim of their own merged into the next."""
    source: Ref = t.args["self"]
    counts: tuple[Any, ...] = t.args["repeats"] if "repeats" in t.args else t.args["dims"]
    shape, dtype = t.shape(source), t.flat.dtype(source)
    shape = (1,) * (len(counts) - len(shape)) + shape
    counts = (1,) * (len(shape) - len(counts)) + tuple(counts)
    source = t.view(source, shape)
    if any(count != 1 and size < 0 for count, size in zip(counts, shape, strict=True)):
        t.refuse(f"repeats tokens of the sequence: {ORDERED}")
    if all(count == 1 for count in counts):
        return source
    if any(not isinstance(count, int) or count < 0 for count in counts):
        t.refuse("repeats a tensor over the sequence: let broadcasting do it")
    pairs = list(zip(counts, shape, strict=True))
    split = t.view(source, tuple(x for count, size in pairs for x in ((1, size) if count != 1 else (size,))))
    wide = tuple(x for count, size in pairs for x in ((count, size) if count != 1 else (size,)))
    return t.view(t.emit("expand", split, value=Tensor(wide, dtype)), t.value().shape)


def arange(t: Translation) -> Ref:
    """`arange(s)` is the positions, `arange(k, s + k)` the positions plus k; any other is a constant."""
    start, step, value = t.args.get("start", 0), t.args.get("step", 1), t.value()
    if value.shape[0] >= 0:
        return t.emit("arange", start, t.args["end"], step, value.dtype)
    if value.shape[0] != TOKENS or step != 1 or not isinstance(start, int) or start < 0:
        t.refuse("builds an arange from the sequence length that does not count up by one")
    found = Ref("positions")
    if start:
        found = t.emit("add.Tensor", found, start, value=Tensor((TOKENS,), "int64"))
    return found if value.dtype == "int64" else t.emit("cast", found, value.dtype)


def full(t: Translation) -> Ref:
    """A constant; one as long as the sequence is refused."""
    fill = {"zeros": 0, "ones": 1, "new_zeros": 0, "new_ones": 1, "scalar_tensor": t.args.get("s")}.get(t.name)
    fill = t.args.get("fill_value") if fill is None else fill
    if any(size < 0 for size in t.value().shape):
        t.refuse(f"builds a tensor as long as the sequence (aten.{t.name}); use the positions, or is_causal=True")
    if not isinstance(fill, (int, float, bool)) or t.flat.symbolic(t.node.args):
        t.refuse(f"fills a tensor with a computed value (aten.{t.name}): use plain arithmetic")
    return t.emit("full", fill, t.value().dtype)


def cast(t: Translation) -> Ref:
    """Dtype changes; identity when there is none."""
    source: Ref = t.args["self"]
    return source if t.flat.dtype(source) == t.value().dtype else t.emit("cast", source, t.value().dtype)
