"""How each exported op becomes one of ours: aliases folded, arguments made positional, sizes packed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from fourfold.hardware.errors import ModelError
from fourfold.ir.graph import TOKENS, Ref, Tensor

FAR = 2**62


@dataclass(frozen=True, slots=True)
class Translation:
    """One exported node on its way: `flat` emits, `args` holds the arguments by schema name."""

    flat: Any
    node: Any
    name: str
    overload: str
    args: dict[str, Any]

    def value(self) -> Tensor:
        """Packed shape and dtype of the result."""
        packed: Tensor = self.flat.packed(self.node.meta["val"])
        return packed

    def emit(self, op: str, *args: Any, value: Tensor | None = None, **kwargs: Any) -> Ref:
        """Appends `op(*args)` with this node's result shape unless another is given."""
        ref: Ref = self.flat.emit(self.node, op, args, value or self.value(), **kwargs)
        return ref

    def where(self) -> str:
        """The module, for messages."""
        return self.flat.module(self.node) or "the model"

    def same(self) -> Any:
        """The op under its own name, arguments as they are; token-sized numbers are refused."""
        schema = {a.name: a for a in self.node.target._schema.arguments}
        positional = tuple(v for k, v in self.args.items() if not schema[k].kwarg_only)
        keywords = {k: v for k, v in self.args.items() if schema[k].kwarg_only and v != schema[k].default_value}
        if any(isinstance(v, int) and v < 0 and k in ("other", "size", "n") for k, v in self.args.items()):
            self._refuse_length(positional)
        if isinstance(self.node.meta["val"], (tuple, list)):
            raise ModelError(f"{self.where()} uses aten.{self.name}, which returns several tensors: no rule knows it")
        return self.emit(f"{self.name}.{self.overload}", *positional, **keywords)

    def _refuse_length(self, args: Any) -> None:
        for exported in self.node.args:
            value = getattr(exported, "meta", {}).get("val")
            if hasattr(value, "node"):
                raise ModelError(
                    f"{self.where()} computes with the sequence length (aten.{self.name}): packed documents have none"
                )


def view(t: Translation) -> Ref:
    """All reshapes are one op; its target is its shape."""
    source: Ref = t.args.get("self", t.args.get("input"))
    return source if t.flat.shape(source) == t.value().shape else t.emit("view", source)


def permute(t: Translation) -> Ref:
    """Transposes and permutations are one op."""
    source = t.args["self"]
    rank = len(t.flat.shape(source))
    order = list(range(rank))
    if "dims" in t.args:
        order = [d % rank for d in t.args["dims"]]
    else:
        a, b = (t.args.get("dim0", 0), t.args.get("dim1", 1)) if rank > 1 else (0, 0)
        order[a], order[b] = order[b], order[a]
    return t.emit("permute", source, tuple(order))


def expand(t: Translation) -> Ref:
    """Identity when nothing grows."""
    source: Ref = t.args["self"]
    return source if t.flat.shape(source) == t.value().shape else t.emit("expand", source)


def piece(t: Translation) -> Ref:
    """A slice; the first tokens of a table are rows picked by position."""
    source: Ref = t.args["self"]
    shape, dim = t.flat.shape(source), t.args["dim"]
    dim %= len(shape)
    start, stop = t.args.get("start") or 0, t.args.get("end")
    stop = FAR if stop is None else stop
    if t.args.get("step", 1) != 1:
        raise ModelError(f"{t.where()} slices with a step: not supported")
    if stop == TOKENS and start == 0 and shape[dim] != TOKENS:
        return _rows(t, source, dim)
    if shape[dim] < 0 and not (start == 0 and (stop >= FAR or stop == shape[dim])):
        raise ModelError(f"{t.where()} slices the sequence: packed documents are not laid out that way")
    size = shape[dim]
    start, stop = (start + size if start < 0 else start), (stop + size if stop < 0 else min(stop, size))
    if start == 0 and (stop == size or size < 0):
        return source
    return t.emit("slice", source, dim, start, stop)


def _rows(t: Translation, source: Ref, dim: int) -> Ref:
    """`table[:s]` --> table rows at the tokens' positions."""
    if dim == 0 and len(t.flat.shape(source)) == 2:
        return t.emit("embedding", source, Ref("positions"))
    lead = t.flat.shape(source)[:dim]
    if all(size == 1 for size in lead):
        rest = t.flat.shape(source)[dim:]
        flat = t.emit("view", source, value=Tensor((rest[0], _product(rest[1:])), t.value().dtype))
        rows = t.emit("embedding", flat, Ref("positions"), value=Tensor((TOKENS, _product(rest[1:])), t.value().dtype))
        return t.emit("view", rows)
    raise ModelError(f"{t.where()} takes the first tokens of a table along dim {dim}: put the positions first")


def _product(sizes: tuple[int, ...]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total


def arange(t: Translation) -> Ref:
    """`arange(s)` is the positions; any other is a constant."""
    end = t.args["end"]
    if end == TOKENS and t.args.get("start", 0) == 0 and t.args.get("step", 1) == 1:
        dtype = t.value().dtype
        return Ref("positions") if dtype == "int64" else t.emit("cast", Ref("positions"), dtype)
    if isinstance(end, int) and end < 0:
        raise ModelError(f"{t.where()} builds an arange from the sequence length that does not count 0..s-1")
    return t.emit("arange", t.args.get("start", 0), end, t.args.get("step", 1), t.value().dtype)


def full(t: Translation) -> Ref:
    """A constant; one as long as the sequence is refused."""
    fill = {"zeros": 0, "ones": 1}.get(t.name, t.args.get("fill_value", t.args.get("value")))
    if any(size < 0 for size in t.value().shape):
        raise ModelError(
            f"{t.where()} builds a tensor as long as the sequence (aten.{t.name}); use the positions or is_causal=True"
        )
    return t.emit("full", fill, t.value().dtype)


def cast(t: Translation) -> Ref:
    """Dtype changes; identity when there is none."""
    source: Ref = t.args["self"]
    return source if t.flat.dtype(source) == t.value().dtype else t.emit("cast", source, t.value().dtype)


def linear(t: Translation) -> Ref:
    """A bias is added by a node of its own, after any partial sums were joined."""
    product = t.emit("linear", t.args["input"], t.args["weight"])
    return product if t.args.get("bias") is None else t.emit("add.Tensor", product, t.args["bias"])


def addmm(t: Translation) -> Ref:
    """`bias + x @ w`, the Conv1D of GPT-2."""
    product = t.emit("matmul", t.args["mat1"], t.args["mat2"])
    return t.emit("add.Tensor", product, t.args["self"])


def matmul(t: Translation) -> Ref:
    """A product with a matrix, or a batched one."""
    left, right = t.args.get("self"), t.args.get("other", t.args.get("mat2"))
    return t.emit("matmul" if len(t.flat.shape(right)) == 2 else "bmm", left, right)


def embedding(t: Translation) -> Ref:
    """Rows of a table."""
    return t.emit("embedding", t.args["weight"], t.args["indices"])


def index_select(t: Translation) -> Ref:
    """Rows of a table by position."""
    if t.args["dim"] != 0:
        raise ModelError(f"{t.where()} uses index_select along dim {t.args['dim']}: only rows (dim 0) are supported")
    return t.emit("embedding", t.args["self"], t.args["index"])


def index(t: Translation) -> Ref:
    """`table[positions]`."""
    picks = [i for i in t.args["indices"]]
    if len(picks) != 1 or picks[0] is None:
        raise ModelError(f"{t.where()} indexes with several tensors: no rule knows it")
    return t.emit("embedding", t.args["self"], picks[0])


def attention(t: Translation) -> Ref:
    """Scaled dot-product attention over the packed documents."""
    q, k, v = t.args["query"], t.args["key"], t.args["value"]
    if t.args.get("attn_mask") is not None:
        raise ModelError(
            f"{t.where()} passes a mask tensor to attention: packed documents need is_causal=True or no mask"
        )
    if t.args.get("dropout_p"):
        raise ModelError(
            f"{t.where()} uses dropout {t.args['dropout_p']} inside attention: set it to 0 (dropout elsewhere is fine)"
        )
    heads, kv_heads = t.flat.shape(q)[1], t.flat.shape(k)[1]
    if heads != kv_heads and not t.args.get("enable_gqa"):
        raise ModelError(f"{t.where()} has {heads} query and {kv_heads} key heads without enable_gqa=True")
    scale = t.args.get("scale") or t.flat.shape(q)[-1] ** -0.5
    return t.emit("attention", q, k, v, scale=scale, causal=bool(t.args.get("is_causal")))


def rms_norm(t: Translation) -> Ref:
    """Over the last dim, with a weight."""
    if len(t.args["normalized_shape"]) != 1:
        raise ModelError(f"{t.where()} normalises over several dims: no rule knows it")
    weight, eps = t.args.get("weight"), t.args.get("eps")
    weight = (weight,) if weight is not None else ()
    return t.emit("rms_norm", t.args["input"], *weight, eps=eps)


def layer_norm(t: Translation) -> Ref:
    """Over the last dim, with or without weight and bias."""
    if len(t.args["normalized_shape"]) != 1:
        raise ModelError(f"{t.where()} normalises over several dims: no rule knows it")
    affine = tuple(t.args[k] for k in ("weight", "bias") if t.args.get(k) is not None)
    return t.emit("layer_norm", t.args["input"], *affine, eps=t.args.get("eps", 1e-5))


def softmax(t: Translation) -> Ref:
    """Along one dim."""
    return t.emit(t.name.removeprefix("_"), t.args["self"], t.args["dim"] % len(t.value().shape))


def reduction(t: Translation) -> Ref:
    """Sum, mean and extremes over dims; all dims when none is named."""
    source = t.args["self"]
    rank = len(t.flat.shape(source))
    dims = t.args.get("dim")
    dims = tuple(range(rank)) if dims in (None, ()) else dims if isinstance(dims, tuple) else (dims,)
    return t.emit(t.name, source, tuple(d % rank for d in dims), bool(t.args.get("keepdim", False)))


def pieces(t: Translation) -> Any:
    """chunk, split, unbind: one slice (or select) each."""
    source, dim = t.args["self"], t.args.get("dim", 0)
    values = [t.flat.packed(v) for v in t.node.meta["val"]]
    dim %= len(t.flat.shape(source))
    if t.name == "unbind":
        return tuple(t.emit("select", source, dim, i, value=v) for i, v in enumerate(values))
    if t.flat.shape(source)[dim] < 0:
        raise ModelError(f"{t.where()} splits the sequence: packed documents are not laid out that way")
    found, start = [], 0
    for value in values:
        found.append(t.emit("slice", source, dim, start, start + value.shape[dim], value=value))
        start += value.shape[dim]
    return tuple(found)


def select(t: Translation) -> Ref:
    """One index of a dim."""
    shape = t.flat.shape(t.args["self"])
    dim = t.args["dim"] % len(shape)
    if shape[dim] < 0:
        raise ModelError(f"{t.where()} picks one token of the sequence: packed documents are not laid out that way")
    return t.emit("select", t.args["self"], dim, t.args["index"] % shape[dim])


def cat(t: Translation) -> Ref:
    """Joined along one dim."""
    if len(t.args["tensors"]) == 1:
        only: Ref = t.args["tensors"][0]
        return only
    return t.emit("cat", t.args["tensors"], t.args.get("dim", 0) % len(t.value().shape))


def stack(t: Translation) -> Ref:
    """Joined along a new dim."""
    return t.emit("stack", t.args["tensors"], t.args.get("dim", 0) % len(t.value().shape))


def repeat(t: Translation) -> Ref:
    """repeat_interleave by a number along one dim."""
    dim = t.args["dim"] % len(t.value().shape)
    return t.args["self"] if t.args["repeats"] == 1 else t.emit("repeat", t.args["self"], t.args["repeats"], dim)


def dropout(t: Translation) -> Ref:
    """Kept when it acts; the identity in evaluation."""
    source: Ref = t.args["input"]
    rate = t.args.get("p", 0.0)
    return t.emit("dropout", source, rate) if rate and t.args.get("train") else source


def refuse_sequence_op(t: Translation) -> Ref:
    """Ops that mix or order tokens."""
    raise ModelError(
        f"{t.where()} uses aten.{t.name}, which mixes positions of the sequence: only attention may; "
        "use F.scaled_dot_product_attention(..., is_causal=True)"
    )


HANDLERS: Mapping[str, Callable[[Translation], Any]] = MappingProxyType(
    {
        **dict.fromkeys(
            ("view", "reshape", "_unsafe_view", "flatten", "unflatten", "unsqueeze", "squeeze", "view_as"), view
        ),
        **dict.fromkeys(("permute", "transpose", "t", "swapaxes", "numpy_T", "mT"), permute),
        **dict.fromkeys(("expand", "expand_as", "broadcast_to"), expand),
        **dict.fromkeys(("to", "_to_copy", "type_as", "float", "double"), cast),
        **dict.fromkeys(("zeros", "ones", "full", "scalar_tensor", "new_zeros", "new_ones", "new_full"), full),
        **dict.fromkeys(("matmul", "mm", "bmm"), matmul),
        **dict.fromkeys(("sum", "mean", "amax", "amin", "var"), reduction),
        **dict.fromkeys(("chunk", "split", "split_with_sizes", "unbind", "tensor_split"), pieces),
        **dict.fromkeys(("softmax", "log_softmax", "_softmax"), softmax),
        **dict.fromkeys(("tril", "triu", "cumsum", "cumprod", "flip", "roll", "sort", "topk"), refuse_sequence_op),
        "slice": piece,
        "select": select,
        "arange": arange,
        "linear": linear,
        "addmm": addmm,
        "embedding": embedding,
        "index_select": index_select,
        "index": index,
        "scaled_dot_product_attention": attention,
        "rms_norm": rms_norm,
        "layer_norm": layer_norm,
        "cat": cat,
        "concat": cat,
        "stack": stack,
        "repeat_interleave": repeat,
        "dropout": dropout,
    }
)
