"""Graphs of a handful of ops by hand: an embedding, a block with a residual three times, norm and loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fourfold.ir.graph import TOKENS, Arg, Block, Call, Graph, Node, Ref, Source, Tensor

VOCABULARY, WIDTH, HEADS, KV_HEADS, HEAD_WIDTH, WIDE = 32000, 4096, 32, 8, 128, 14336
REPEATS = 3

STREAM = Tensor((1, TOKENS, WIDTH), "bfloat16", grad=True)


def weight(*shape: int) -> Tensor:
    return Tensor(shape, "bfloat16", grad=True)


def node(name: str, op: str, reads: str, shape: tuple[int, ...], *, equation: str = "", **kwargs: Arg) -> Node:
    """A node that reads values by name; an einsum's equation goes between them, as captured."""
    refs: tuple[Arg, ...] = tuple(Ref(r) for r in reads.split())
    args: tuple[Arg, ...] = (refs, equation) if equation else refs
    return Node(name, op, args, tuple(kwargs.items()), Tensor(shape, "bfloat16", grad=True))


def block(name: str, parameters: Mapping[str, Tensor], *nodes: Node) -> Block:
    """A block from the stream x to its last node."""
    return Block(name, {"x": STREAM}, parameters, {}, nodes, (nodes[-1].name,))


def feed_forward(*, gated: bool) -> Block:
    """Norm, products there and back, residual; with a gate, two products read the norm."""
    wide = (1, TOKENS, WIDE)
    weights = {"norm.w": weight(WIDTH), "up.w": weight(WIDE, WIDTH), "down.w": weight(WIDTH, WIDE)}
    start = (node("norm", "rms_norm", "x norm.w", STREAM.shape), node("up", "linear", "norm up.w", wide))
    middle: tuple[Node, ...]
    if gated:
        weights["gate.w"] = weight(WIDE, WIDTH)
        middle = node("gate", "linear", "norm gate.w", wide), node("act", "mul.Tensor", "gate up", wide)
    else:
        middle = (node("act", "silu.default", "up", wide),)
    end = node("down", "linear", "act down.w", STREAM.shape), node("add", "add.Tensor", "x down", STREAM.shape)
    return block("layer", weights, *start, *middle, *end)


def attention() -> Block:
    """Norm, grouped-query attention with projections by einsum, residual: cut by heads or nowhere."""
    queries, keys = (1, HEADS, TOKENS, HEAD_WIDTH), (1, KV_HEADS, TOKENS, HEAD_WIDTH)
    weights = {
        "norm.w": weight(WIDTH),
        "out.w": weight(HEADS, HEAD_WIDTH, WIDTH),
        "q.w": weight(HEADS, HEAD_WIDTH, WIDTH),
    }
    weights |= {name: weight(KV_HEADS, HEAD_WIDTH, WIDTH) for name in ("k.w", "v.w")}
    projections = [
        node(name, "einsum", f"norm {name}.w", shape, equation="btd,hed->bhte")
        for name, shape in (("q", queries), ("k", keys), ("v", keys))
    ]
    return block(
        "layer",
        weights,
        node("norm", "rms_norm", "x norm.w", STREAM.shape),
        *projections,
        node("mix", "attention", "q k v", queries, scale=0.1, causal=True),
        node("out", "einsum", "mix out.w", STREAM.shape, equation="bhte,hed->btd"),
        node("add", "add.Tensor", "x out", STREAM.shape),
    )


def branch(*, dropped: bool = False) -> Block:
    """Two products of the stream itself, added: partial sums may pass the sum; `dropped` is what dropout cuts."""
    weights = {name: weight(WIDTH, WIDTH) for name in ("left.w", "right.w")}
    products = [node(name, "linear", f"x {name}.w", STREAM.shape) for name in ("left", "right")]
    end = node("drop", "dropout", "add", STREAM.shape) if dropped else node("neg", "neg.default", "add", STREAM.shape)
    return block("layer", weights, *products, node("add", "add.Tensor", "left right", STREAM.shape), end)


def around(layer: Block, *, tied: bool = False) -> Graph:
    """The layer three times between an embedding and the loss; tied, these two read one weight."""
    table = "/shared.w" if tied else "table.w"
    ints, halves = Tensor((TOKENS,), "int64"), Tensor((TOKENS,), "float32")
    vocabulary = {table: weight(VOCABULARY, WIDTH)}
    first = Block(
        "first", {"ids": ints}, vocabulary, {}, (node("look", "embedding", f"{table} ids", STREAM.shape),), ("look",)
    )
    last = Block(
        "last",
        {"x": STREAM, "targets": ints, "weights": halves},
        {**vocabulary, "norm.w": weight(WIDTH)},
        {},
        (
            node("norm", "rms_norm", "x norm.w", STREAM.shape),
            node("loss", "loss", f"norm {table} targets weights", (), transposed=False),
        ),
        ("loss",),
    )
    layers = tuple(Call("layer", f"layers.{i}", (Source(i, 0),)) for i in range(REPEATS))
    head = Call("last", "last", (Source(REPEATS, 0), Source(-1, 2), Source(-1, 3)))
    calls = (Call("first", "first", (Source(-1, 0),)), *layers, head)
    return Graph("tiny", "tiny", {"first": first, "layer": layer, "last": last}, calls)


GRAPHS = {
    "feed-forward": around(feed_forward(gated=False)),
    "gated feed-forward, tied": around(feed_forward(gated=True), tied=True),
    "attention": around(attention()),
    "branch": around(branch()),
    "branch, dropout, tied": around(branch(dropped=True), tied=True),
}


def deeper(graph: Graph, layers: int) -> Graph:
    """A captured model of few layers with `layers` of them: what capturing it would give, at once."""
    first, layer, *_, last = graph.calls
    rest = tuple(Source(0, source.output) for source in layer.sources[1:])
    calls = tuple(Call(layer.block, f"layers.{i}", (Source(i, 0), *rest)) for i in range(layers))
    head = Call(last.block, last.prefix, (Source(layers, 0), *last.sources[1:]))
    return replace(graph, calls=(first, *calls, head))
