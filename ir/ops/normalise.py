"""Norms, softmax and reductions: ops with a label that must stay whole or that is summed."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from fourfold.ir.graph import Node
from fourfold.ir.ops.op import Op, Shapes, letters


def along(node: Node, shapes: Shapes) -> str:
    """An op that needs dim `args[1]` whole: before --> after, `d0 !d1 -> d0 !d1`."""
    dims = letters(len(shapes[0]))
    dims[int(str(node.args[1])) % len(dims)] = "!whole"
    return f"{' '.join(dims)} -> {' '.join(dims)}"


def reduction(mark: str) -> Op:
    """A reduction over the dims `args[1]`; `mark` is "" if partial results may be summed, "!" if not."""

    def line(node: Node, shapes: Shapes) -> str:
        dims = letters(len(shapes[0]))
        raw = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
        gone = {int(str(d)) % len(dims) for d in raw}
        keep = bool(node.args[2])
        left = [mark + d if i in gone else d for i, d in enumerate(dims)]
        right = [f"one{i}" if i in gone else d for i, d in enumerate(dims) if keep or i not in gone]
        return f"{' '.join(left)} -> {' '.join(right) or '.'}"

    return Op(line, "pointwise", linear=mark == "")


NORMALISATIONS: Mapping[str, Op] = MappingProxyType(
    {
        "rms_norm": Op("* !d, !d -> * !d", "norm"),
        "layer_norm": Op("* !d, !d, !d -> * !d", "norm"),
        "softmax": Op(along, "norm"),
        "log_softmax": Op(along, "norm"),
        "sum": reduction(""),
        "mean": reduction("!"),
        "amax": reduction("!"),
        "amin": reduction("!"),
        "var": reduction("!"),
        "std": reduction("!"),
        "vector_norm": reduction("!"),
        "logsumexp": reduction("!"),
    }
)
