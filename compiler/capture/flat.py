"""A captured model as one list of nodes in our own few ops: packed shapes, full module names."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from fourfold.ir.graph import TOKENS, Node, Part, Tensor

GIVEN = {
    "tokens": Tensor((1, TOKENS), "int64"),
    "positions": Tensor((TOKENS,), "int64"),
    "targets": Tensor((TOKENS,), "int64"),
    "weights": Tensor((TOKENS,), "float32"),
}
"""What every micro-step provides."""


@dataclass(slots=True)
class Flat:
    """A captured model before folding: nodes in order, parameters and buffers by full name, the logits' value.

    A node's module may carry `@k` behind a name: the module's call number k, when it is called more than once.
    """

    nodes: list[Node] = field(default_factory=list)
    parameters: dict[str, Tensor] = field(default_factory=dict)
    buffers: dict[str, Tensor] = field(default_factory=dict)
    output: str = ""
    parts: dict[str, Part] = field(default_factory=dict)

    def values(self) -> dict[str, Tensor]:
        """Shape and dtype of every value by name."""
        return {**GIVEN, **self.parameters, **self.buffers, **{n.name: n.value for n in self.nodes}}

    def readers(self) -> dict[str, list[Node]]:
        """Who reads each value."""
        found: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.refs()):
                found.setdefault(name, []).append(node)
        return found


def uncounted(module: str) -> str:
    """The module's own name: without call numbers."""
    return re.sub(r"@\d+", "", module)
