"""One small node, or a few, for every op of every table: the cases of the brute-force test."""

from __future__ import annotations

import pytest

from fourfold.ir.graph import TOKENS, Arg, Node, Ref
from fourfold.ir.graph import Tensor as Value
from fourfold.ir.ops.pointwise import NAMES

T = TOKENS
X = (1, T, 6)
Shape = tuple[int, ...]


def example(
    op: str, *shapes: Shape, rest: tuple[Arg, ...] = (), out: Shape = (), kinds: str = "", **kwargs: Arg
) -> Node:
    """A node `op(x0, x1, .., *rest)`; `kinds` says a letter an input: f float, p positive, b bool, i index below 6.

    Kinds and shapes are kept in the node's module name and in Refs, as the node is all that a case holds.
    """
    kinds = kinds or "f" * len(shapes)
    names = tuple(
        f"{kind}{i}_{'_'.join(map(str, shape))}" for i, (kind, shape) in enumerate(zip(kinds, shapes, strict=True))
    )
    refs: tuple[Arg, ...] = tuple(Ref(name) for name in names)
    if op in ("cat", "stack", "einsum"):
        refs = (refs,)
    return Node(op, op, (*refs, *rest), tuple(kwargs.items()), Value(out, "float64"))


UNARY = {name: (example(f"{name}.default", X, kinds="p"),) for name in NAMES.split()}
BINARY = ["atan2", "fmax", "fmin", "hypot", "logaddexp", "maximum", "minimum"]
COMPARE = ["eq", "ge", "gt", "le", "lt", "ne"]
LOGIC = ["bitwise_and", "bitwise_or", "bitwise_xor", "logical_and", "logical_or", "logical_xor"]

EXAMPLES: dict[str, tuple[Node, ...]] = {
    **UNARY,
    **{name: (example(f"{name}.default", X, (1, T, 1)),) for name in BINARY},
    **{name: (example(f"{name}.Tensor", X, (6,)), example(f"{name}.Scalar", X, rest=(0.1,))) for name in COMPARE},
    **{
        name: (example(f"{name}.{'Tensor' if name[0] == 'b' else 'default'}", X, (T, 1), kinds="bb"),) for name in LOGIC
    },
    "bitwise_not": (example("bitwise_not.default", X, kinds="b"),),
    "logical_not": (example("logical_not.default", X, kinds="b"),),
    "add": (
        example("add.Tensor", X, (6,)),
        example("add.Tensor", X, rest=(2.0,)),
        example("add.Tensor", X, X, alpha=2),
    ),
    "sub": (example("sub.Tensor", X, X), example("sub.Tensor", X, rest=(1.0,))),
    "rsub": (example("rsub.Scalar", X, rest=(1.0,)),),
    "mul": (example("mul.Tensor", X, X), example("mul.Tensor", X, rest=(3.0,)), example("mul.Tensor", X, (6,))),
    "div": (
        example("div.Tensor", X, (T, 1), kinds="fp"),
        example("div.Tensor", X, rest=(3.0,)),
        example("div.Tensor_mode", X, rest=(0.3,), rounding_mode="floor"),
    ),
    "floor_divide": (example("floor_divide.Scalar", X, rest=(2,), kinds="i"),),
    "addcmul": (example("addcmul.default", X, X, (6,)),),
    "addcdiv": (example("addcdiv.default", X, X, (6,), kinds="ffp"),),
    "clamp": (example("clamp.default", X, rest=(-0.5, 0.5)),),
    "clamp_max": (example("clamp_max.default", X, rest=(0.5,)),),
    "clamp_min": (example("clamp_min.default", X, rest=(0.5,)),),
    "copysign": (example("copysign.Tensor", X, X),),
    "fmod": (example("fmod.Scalar", X, rest=(0.3,)),),
    "remainder": (example("remainder.Scalar", X, rest=(0.3,)),),
    "full_like": (example("full_like.default", X, rest=(2.0,)),),
    "lerp": (example("lerp.Tensor", X, X, (6,)),),
    "masked_fill": (example("masked_fill.Scalar", X, (T, 6), rest=(0.0,), kinds="fb"),),
    "pow": (
        example("pow.Tensor_Scalar", X, rest=(3.0,)),
        example("pow.Tensor_Tensor", X, (6,), kinds="pp"),
    ),
    "threshold": (example("threshold.default", X, rest=(0.1, 2.0)),),
    "where": (example("where.self", X, X, (6,), kinds="bff"),),
    "xlogy": (example("xlogy.Tensor", X, X, kinds="pp"),),
    "cast": (example("cast", X, rest=("float64",)),),
    "dropout": (example("dropout", X, rest=(0.0,)),),
    "detach": (example("detach", X),),
    "linear": (example("linear", X, (12, 6)),),
    "matmul": (example("matmul", X, (6, 12)), example("matmul", (1, 6, T, 12), (12, 6))),
    "bmm": (example("bmm", (1, 6, T, 12), (1, 6, 12, 6)), example("bmm", (6, T, 12), (6, 12, 6))),
    "einsum": (
        example("einsum", X, (6, 12, 6), rest=("bsd,dhe->bshe",)),
        example("einsum", (1, T, 12, 6), (12, 6, 6), rest=("bshe,hed->bsd",)),
    ),
    "embedding": (example("embedding", (6, 12), (1, T), kinds="fi"), example("embedding", (6, 12), (T,), kinds="fi")),
    "attention": (
        example("attention", (1, 12, T, 4), (1, 6, T, 4), (1, 6, T, 4), scale=0.5, causal=True),
        example("attention", (1, 6, T, 4), (1, 1, T, 4), (1, 1, T, 4), scale=0.5, causal=True),
        example("attention", (1, 12, T, 4), (1, 2, T, 4), (1, 2, T, 4), scale=0.5, causal=False),
    ),
    "loss": (
        example("loss", (1, T, 6), (12, 6), (T,), (T,), kinds="ffip"),
        example("loss", (1, T, 6), (12, 6), (T,), (T,), (12,), (), kinds="ffipff"),
    ),
    "rms_norm": (example("rms_norm", X, (6,), eps=1e-6), example("rms_norm", (1, T, 12, 6), eps=1e-6)),
    "layer_norm": (example("layer_norm", X, (6,), (6,)), example("layer_norm", X)),
    "softmax": (example("softmax", X, rest=(-1,)), example("softmax", (1, T, 6, 12), rest=(2,))),
    "log_softmax": (example("log_softmax", X, rest=(2,)),),
    **{
        name: (example(name, X, rest=((2,), True)), example(name, (1, T, 6, 12), rest=((2, 3), False)))
        for name in ("sum", "mean", "amax", "amin", "var", "std", "vector_norm", "logsumexp")
    },
    "view": (
        example("view", (1, T, 12), out=(1, T, 6, 2)),
        example("view", (1, T, 6, 2), out=(1, T, 12)),
        example("view", (1, T, 12), out=(T, 12)),
        example("view", (1, T, 12), out=(1, T, 1, 12)),
        example("view", (T, 6, 4), out=(1, T, 3, 8)),
        example("view", (1, T, 6, 2), out=(-6, 2)),
        example("view", (6,), out=(1, 1, 6)),
    ),
    "arange": (example("arange", rest=(0, 6, 2, "float64"), out=(3,)),),
    "permute": (example("permute", (1, T, 6, 12), rest=((0, 2, 1, 3),)),),
    "expand": (example("expand", (6, 1, 1), out=(6, 12, 6)), example("expand", (T, 1), out=(1, T, 6))),
    "slice": (example("slice", X, rest=(2, 1, 4)), example("slice", (1, T, 6, 12), rest=(3, 0, 6))),
    "select": (example("select", (1, T, 6, 12), rest=(2, 1)), example("select", (1, T, 6), rest=(0, 0))),
    "cat": (example("cat", (1, T, 6, 2), (1, T, 6, 4), rest=(3,)), example("cat", X, X, X, rest=(2,))),
    "stack": (example("stack", X, X, rest=(2,)), example("stack", X, X, rest=(3,))),
    "repeat": (example("repeat", (1, T, 6, 4), rest=(2, 2)),),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Gives each test that asks for `case` every example."""
    if "case" in metafunc.fixturenames:
        found = {f"{name}-{i}": node for name, nodes in EXAMPLES.items() for i, node in enumerate(nodes)}
        metafunc.parametrize("case", found.values(), ids=found.keys())


@pytest.fixture(scope="session")
def examples() -> dict[str, tuple[Node, ...]]:
    return EXAMPLES
