"""Products, table rows and attention of the exported graph."""

from __future__ import annotations

from fourfold.compiler.capture.translate.translation import Translation
from fourfold.ir.graph import TOKENS, Ref, Tensor


def linear(t: Translation) -> Ref:
    """A bias is added by a node of its own, after any partial sums were joined."""
    product = t.emit("linear", t.args["input"], t.args["weight"])
    return product if t.args.get("bias") is None else t.emit("add.Tensor", product, t.args["bias"])


def addmm(t: Translation) -> Ref:
    """`bias + x @ w`, the Conv1D of GPT-2."""
    product = t.emit("matmul", t.args["mat1"], t.args["mat2"])
    bias: Ref = t.args["self"]
    if t.args.get("alpha", 1) != 1:
        product = t.emit("mul.Tensor", product, t.args["alpha"])
    if t.args.get("beta", 1) != 1:
        bias = t.emit("mul.Tensor", bias, t.args["beta"], value=Tensor(t.shape(bias), t.flat.dtype(bias)))
    return t.emit("add.Tensor", product, bias)


def matmul(t: Translation) -> Ref:
    """A product with a matrix, or a batched one; a vector at the right is a matrix of one column."""
    left: Ref = t.args["self"]
    right: Ref = next(t.args[k] for k in ("other", "mat2", "vec", "tensor") if k in t.args)
    rank = len(t.shape(right))
    if len(t.shape(left)) == 1:
        t.refuse("multiplies a vector from the left: give it a row dim first")
    if rank == 1:
        column = t.view(right, (*t.shape(right), 1))
        shape = (*t.shape(left)[:-1], 1)
        return t.view(t.emit("matmul", left, column, value=Tensor(shape, t.value().dtype)), t.value().shape)
    return t.emit("matmul" if rank == 2 else "bmm", left, right)


def einsum(t: Translation) -> Ref:
    """The equation, its ellipses written out; products with one matrix become linear layers."""
    equation, tensors = str(t.args["equation"]).replace(" ", ""), t.args["tensors"]
    left, arrow, right = equation.partition("->")
    words = left.split(",")
    if "..." in equation or not arrow or any(len(set(w)) != len(w) for w in words) or len(words) != len(tensors):
        t.refuse(f"uses einsum {equation!r}: write every dim by its own letter, and the result after ->")
    return _as_linear(t, words, right, tensors) or t.emit("einsum", tensors, f"{','.join(words)}->{right}")


def _as_linear(t: Translation, words: list[str], right: str, tensors: tuple[Ref, ...]) -> Ref | None:
    """`bsd,fd->bsf` and `bsd,df->bsf` as products whose weight may be split or be the head."""
    if len(words) != 2 or len(words[1]) != 2 or len(t.shape(tensors[1])) != 2:
        return None
    x, w = words
    if right != x[:-1] + w.replace(x[-1], "") or len(right) != len(x) or x[-1] not in w:
        return None
    return t.emit("linear" if w[1] == x[-1] else "matmul", *tensors)


def outer(t: Translation) -> Ref:
    """A column times a row, as rotary angles are made of positions and frequencies."""
    row = next(t.args[k] for k in ("vec2", "other") if k in t.args)
    column = t.view(t.args["self"], (*t.shape(t.args["self"]), 1))
    return t.emit("mul.Tensor", column, row)


def embedding(t: Translation) -> Ref:
    """Rows of a table; the row of a padding token gets no gradient."""
    table, ids = t.args["weight"], t.args["indices"]
    found = t.emit("embedding", table, ids)
    padding = t.args.get("padding_idx", -1)
    if padding is None or padding < 0 or not t.flat.grad[table.name]:
        return found
    value = t.value()
    padded = t.emit("eq.Scalar", ids, padding, value=Tensor(t.shape(ids), "bool"))
    padded = t.view(padded, (*t.shape(ids), 1))
    return t.emit("where.self", padded, t.emit("detach", found, value=value), found)


def index_select(t: Translation) -> Ref:
    """Rows of a table by position."""
    if t.args["dim"] != 0:
        t.refuse(f"uses index_select along dim {t.args['dim']}: only rows (dim 0) are supported")
    return _rows(t, t.args["self"], t.args["index"])


def index(t: Translation) -> Ref:
    """`table[positions]`."""
    picks = t.args["indices"]
    if len(picks) != 1 or picks[0] is None or t.flat.dtype(picks[0]) == "bool":
        t.refuse("indexes with a mask or with several tensors: no rule knows it")
    return _rows(t, t.args["self"], picks[0])


def _rows(t: Translation, table: Ref, ids: Ref) -> Ref:
    """Rows of a table of any rank."""
    shape = t.shape(table)
    if shape[0] < 0:
        t.refuse("picks tokens of the sequence by index: only attention may look from one token to another")
    width = 1
    for size in shape[1:]:
        width *= size
    flat = t.view(table, (shape[0], width))
    value = Tensor((*t.shape(ids), width), t.flat.dtype(table))
    return t.view(t.emit("embedding", flat, ids, value=value), t.value().shape)


def attention(t: Translation) -> Ref:
    """Scaled dot-product attention over the packed documents; with a window, if it has one."""
    q, k, v = (_four_dims(t, t.args[name]) for name in ("query", "key", "value"))
    if t.args.get("attn_mask") is not None:
        t.refuse("passes a mask tensor to attention: packed documents need is_causal=True, or no mask at all")
    if t.args.get("dropout_p"):
        t.refuse(f"uses dropout {t.args['dropout_p']} inside attention: set it to 0 (dropout elsewhere is fine)")
    heads, kv_heads = t.shape(q)[1], t.shape(k)[1]
    if heads != kv_heads and kv_heads != 1 and not t.args.get("enable_gqa"):
        t.refuse(f"has {heads} query and {kv_heads} key heads: pass enable_gqa=True")
    if t.shape(k)[-1] != t.shape(v)[-1] or t.shape(v)[1] != kv_heads:
        t.refuse(f"has keys shaped {t.shape(k)} and values {t.shape(v)}: heads and head width must agree")
    scale = t.args.get("scale")
    if (scale is not None and not isinstance(scale, (int, float))) or t.flat.symbolic(t.node.kwargs.get("scale")):
        t.refuse("scales attention by a number that depends on the sequence")
    scale = t.shape(q)[-1] ** -0.5 if scale is None else float(scale)
    value = Tensor(t.shape(q), t.value().dtype)
    window = t.args.get("window")
    if window is not None and (not isinstance(window, int) or window < 1):
        t.refuse(f"attends within a window of {window} tokens: a window counts the token itself, so it is 1 or more")
    bound = {} if window is None else {"window": window}
    found = t.emit("attention", q, k, v, scale=scale, causal=bool(t.args.get("is_causal")), **bound, value=value)
    return t.view(found, t.value().shape)


def _four_dims(t: Translation, x: Ref) -> Ref:
    """[1, heads, tokens, width]; three dims lack the batch or the heads."""
    shape = t.shape(x)
    if len(shape) < 3 or shape[-2] != TOKENS or any(size != 1 for size in shape[:-3]):
        t.refuse(
            f"attends over tensors shaped {shape} (-1: tokens): F.scaled_dot_product_attention needs "
            "[batch, heads, sequence, width], so transpose(1, 2) first"
        )
    return t.view(x, (1, *shape[-3:]))
