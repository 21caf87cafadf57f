"""Which modules are the repeating blocks of a model: the items of its lists; without lists, what holds attention."""

from __future__ import annotations

from fourfold.compiler.capture.flat import Flat, uncounted


def prefixes(flat: Flat) -> dict[str, str]:
    """For each module name of the nodes, the block it belongs to (with its call number), "" for none.

    A block holds attention, or at least two parameters. An item of a list that holds several attentions is looked into.
    """
    names = dict.fromkeys(node.module for node in flat.nodes)
    mixing = [node.module for node in flat.nodes if node.op == "attention"]
    found = {name: _block_of(name, mixing) for name in names}
    if not any(found.values()):
        return {name: _without_lists(name, mixing) for name in names}
    read: dict[str, set[str]] = {}
    for node in flat.nodes:
        read.setdefault(found[node.module], set()).update(r for r in node.refs() if r in flat.parameters)
    holding = {found[m] for m in mixing}
    kept = {block for block, used in read.items() if block in holding or len(used) >= 2}
    return {name: block if block in kept else "" for name, block in found.items()}


def _block_of(module: str, mixing: list[str]) -> str:
    """The module's name up to a list index: the first, or a later one while the earlier holds several attentions."""
    words = module.split(".")
    ends = [i for i, word in enumerate(words) if uncounted(word).isdigit()]
    for i in ends:
        name = ".".join(words[: i + 1])
        if sum(m == name or m.startswith(name + ".") for m in mixing) <= 1:
            return name
    return ".".join(words[: ends[-1] + 1]) if ends else ""


def _without_lists(module: str, mixing: list[str]) -> str:
    """The outermost module that holds one attention of several; "" where there is none."""
    words = module.split(".")
    for i in range(len(words)):
        name = ".".join(words[: i + 1])
        inside = sum(m == name or m.startswith(name + ".") for m in mixing)
        if 0 < inside < len(mixing):
            return name
    return ""
