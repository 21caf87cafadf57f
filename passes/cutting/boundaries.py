"""Where values cross from block to block: every block input and output that some call connects is one place."""

from __future__ import annotations

from fourfold.ir.graph import INPUTS, Graph


def boundaries(graph: Graph) -> dict[tuple[str, str], str]:
    """The place of every (block, input) and (block, output). What a graph input reaches is named as that input."""
    places = _Places()
    for call in graph.calls:
        block = graph.blocks[call.block]
        for name, source in zip(block.inputs, call.sources, strict=True):
            if source.call < 0:
                places.join(f"{block.name}|{name}|in", INPUTS[source.output])
                continue
            other = graph.blocks[graph.calls[source.call].block]
            places.join(f"{block.name}|{name}|in", f"{other.name}|{other.outputs[source.output]}|out")
    found: dict[tuple[str, str], str] = {}
    for block in graph.blocks.values():
        found |= {(block.name, name): places.find(f"{block.name}|{name}|out") for name in block.outputs}
        found |= {(block.name, name): places.find(f"{block.name}|{name}|in") for name in block.inputs}
    return found


class _Places:
    """Disjoint sets of names; a graph input stays the name of its set."""

    def __init__(self) -> None:
        self.parent: dict[str, str] = {}

    def find(self, name: str) -> str:
        """The name of the set."""
        while self.parent.setdefault(name, name) != name:
            name = self.parent[name]
        return name

    def join(self, one: str, other: str) -> None:
        """Makes two sets one."""
        child, root = self.find(one), self.find(other)
        if child in INPUTS:
            child, root = root, child
        self.parent[child] = root
