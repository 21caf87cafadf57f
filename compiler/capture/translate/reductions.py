"""Norms, softmax and reductions of the exported graph, and the ops that no packed document can have."""

from __future__ import annotations

from typing import Any

from fourfold.compiler.capture.translate.translation import Translation
from fourfold.ir.graph import Ref, Tensor


def rms_norm(t: Translation) -> Ref:
    """Over the last dim, with or without a weight."""
    if len(t.args["normalized_shape"]) != 1:
        t.refuse("normalises over several dims: no rule knows it")
    weight = (t.args["weight"],) if t.args.get("weight") is not None else ()
    return t.emit("rms_norm", t.args["input"], *weight, eps=t.args.get("eps"))


def layer_norm(t: Translation) -> Ref:
    """Over the last dim, with or without weight and bias."""
    if len(t.args["normalized_shape"]) != 1:
        t.refuse("normalises over several dims: no rule knows it")
    weight, bias, eps = t.args.get("weight"), t.args.get("bias"), t.args.get("eps", 1e-5)
    if weight is None and bias is not None:
        t.refuse("has a layer norm with a bias but no weight: no rule knows it")
    affine = tuple(x for x in (weight, bias) if x is not None)
    return t.emit("layer_norm", t.args["input"], *affine, eps=eps)


def softmax(t: Translation) -> Ref:
    """Along one dim, in the dtype asked for."""
    source: Ref = t.args["self"]
    value = t.value()
    if t.flat.dtype(source) != value.dtype:
        source = t.emit("cast", source, value.dtype, value=value)
    return t.emit(t.name.removeprefix("_"), source, t.dim(source))


def reduction(t: Translation) -> Ref:
    """Sum, mean, extremes and variance over dims; over all dims when none is named."""
    name = {"linalg_vector_norm": "vector_norm", "norm": "vector_norm"}.get(t.name, t.name)
    source: Ref = t.args["self"]
    value = t.value()
    if name in ("sum", "mean", "vector_norm") and t.flat.dtype(source) != value.dtype:
        source = t.emit("cast", source, value.dtype, value=Tensor(t.shape(source), value.dtype))
    return t.emit(name, source, _dims(t, source), bool(t.args.get("keepdim", False)), **_options(t, name))


def _dims(t: Translation, source: Ref) -> tuple[int, ...]:
    rank = len(t.shape(source))
    dims = t.args.get("dim")
    dims = tuple(range(rank)) if dims in (None, ()) else dims if isinstance(dims, tuple) else (dims,)
    return tuple(d % rank for d in dims)


def _options(t: Translation, name: str) -> dict[str, Any]:
    if name in ("var", "std"):
        correction = t.args.get("correction")
        given = 1 if correction is None else correction
        return {"correction": int(t.args["unbiased"]) if "unbiased" in t.args else given}
    if name == "vector_norm":
        order = t.args.get("ord", t.args.get("p", 2))
        return {"order": 2 if order is None else order}
    return {}


def moments(t: Translation) -> Any:
    """var_mean and std_mean: two nodes."""
    source: Ref = t.args["self"]
    dims, keep = _dims(t, source), bool(t.args.get("keepdim", False))
    spread, mean = (t.flat.packed(v, t.node) for v in t.node.meta["val"])
    first = t.name.removesuffix("_mean")
    return (
        t.emit(first, source, dims, keep, value=spread, **_options(t, first)),
        t.emit("mean", source, dims, keep, value=mean),
    )


def glu(t: Translation) -> Ref:
    """x[..., :n] * sigmoid(x[..., n:])."""
    source: Ref = t.args["self"]
    dim = t.dim(source, default=-1)
    value = t.value()
    half = value.shape[dim]
    gate = t.emit("slice", source, dim, half, 2 * half)
    return t.emit("mul.Tensor", t.emit("slice", source, dim, 0, half), t.emit("sigmoid.default", gate))


def dropout(t: Translation) -> Ref:
    """Kept when it acts; the identity in evaluation."""
    source: Ref = t.args["input"]
    rate = t.args.get("p", 0.0)
    return t.emit("dropout", source, rate) if rate and t.args.get("train") else source


def ordered(t: Translation) -> Ref:
    """Ops along a dim that order or mix its elements: legal along any dim but the tokens'."""
    source: Ref = t.args["self"]
    dims = t.args.get("dim", t.args.get("dims", ()))
    dims = dims if isinstance(dims, tuple) else (dims,)
    if not dims or t.name in ("tril", "triu"):
        dims = tuple(range(len(t.shape(source))))
    if any(t.shape(source)[d] < 0 for d in dims):
        t.refuse(
            f"uses aten.{t.name}, which mixes positions of the sequence: only attention may; "
            "use F.scaled_dot_product_attention(..., is_causal=True)"
        )
    return t.same()
