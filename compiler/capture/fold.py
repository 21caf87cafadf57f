"""Cuts the flat graph into calls at the modules that repeat, and writes equal ones once."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fourfold.compiler.capture.flat import Flat, uncounted
from fourfold.compiler.capture.prefixes import prefixes
from fourfold.compiler.capture.rewrite import renamed
from fourfold.ir.graph import ABSOLUTE, INPUTS, Block, Call, Node, Ref, Source, Tensor

NAMED = ("linear", "matmul", "embedding", "rms_norm", "layer_norm")
"""Ops whose nodes are called after their module."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of nodes that belong together: under one module (in one call of it), or the glue between."""

    prefix: str
    nodes: tuple[Node, ...]


def folded(flat: Flat) -> tuple[dict[str, Block], tuple[Call, ...]]:
    """Blocks by name and the calls in order."""
    segments = _segments(flat)
    home = {node.name: i for i, segment in enumerate(segments) for node in segment.nodes}
    outputs = _outputs(segments, home, flat.output)
    values = flat.values()
    blocks: dict[str, Block] = {}
    known: dict[str, str] = {}
    calls = []
    for i, segment in enumerate(segments):
        block, sources = _block(segment, outputs[i], flat, values)
        name = _settle(block, _class_name(segment, i, len(segments)), blocks, known)
        where = tuple(_source(s, home, outputs) for s in sources)
        calls.append(Call(name, uncounted(segment.prefix), where))
    return blocks, tuple(calls)


def _segments(flat: Flat) -> list[Segment]:
    found = prefixes(flat)
    runs: list[tuple[str, list[Node]]] = []
    for node in flat.nodes:
        prefix = found.get(node.module, "")
        if not runs or runs[-1][0] != prefix:
            runs.append((prefix, []))
        runs[-1][1].append(node)
    return [Segment(prefix, tuple(nodes)) for prefix, nodes in _joined(runs)]


def _joined(runs: list[tuple[str, list[Node]]]) -> list[tuple[str, list[Node]]]:
    """Glue that stands inside a module's run joins that run."""
    out: list[tuple[str, list[Node]]] = []
    for prefix, nodes in runs:
        if len(out) >= 2 and out[-2][0] == prefix and prefix and not out[-1][0]:
            glue = out.pop()
            out[-1][1].extend([*glue[1], *nodes])
        else:
            out.append((prefix, nodes))
    return out


def _outputs(segments: list[Segment], home: dict[str, int], last: str) -> list[tuple[str, ...]]:
    """For each segment the values later ones read, in order of making; the loss for the last."""
    crossing = {last}
    for i, segment in enumerate(segments):
        crossing.update(r for node in segment.nodes for r in node.refs() if home.get(r, i) != i)
    return [tuple(node.name for node in segment.nodes if node.name in crossing) for segment in segments]


def _block(
    segment: Segment, outputs: tuple[str, ...], flat: Flat, values: dict[str, Tensor]
) -> tuple[Block, list[str]]:
    """The segment under local names, and the outside names of its inputs."""
    prefix = uncounted(segment.prefix)
    local: dict[str, Ref] = {}
    inputs: dict[str, Tensor] = {}
    parameters: dict[str, Tensor] = {}
    buffers: dict[str, Tensor] = {}
    sources: list[str] = []
    nodes = []
    taken: dict[str, int] = dict.fromkeys(INPUTS, 0)
    for node in segment.nodes:
        for name in node.refs():
            if name in local:
                continue
            if name in flat.parameters or name in flat.buffers:
                short = _owned(name, prefix)
                table = parameters if name in flat.parameters else buffers
                table[short] = values[name]
            else:
                short = name if name in INPUTS else f"in{sum(s not in INPUTS for s in sources)}"
                inputs[short] = values[name]
                sources.append(name)
            local[name] = Ref(short)
        module = _relative(uncounted(node.module), prefix)
        short = _local_name(node, module, taken)
        nodes.append(replace(renamed(node, local), name=short, module=module))
        local[node.name] = Ref(short)
    block = Block("", inputs, parameters, buffers, tuple(nodes), tuple(local[o].name for o in outputs))
    return block, sources


def _owned(name: str, prefix: str) -> str:
    """A tensor's name below `prefix`; one that lives elsewhere keeps its full name, marked."""
    if not prefix:
        return name
    return name.removeprefix(prefix + ".") if name.startswith(prefix + ".") else ABSOLUTE + name


def _relative(name: str, prefix: str) -> str:
    return name.removeprefix(prefix + ".") if prefix and name != prefix else ("" if name == prefix else name)


def _local_name(node: Node, module: str, taken: dict[str, int]) -> str:
    """`attention.q` for a layer's product, the op's own name for the rest; numbered when taken."""
    named = bool(module) and node.op in NAMED
    base = module if named else node.op.split(".")[0]
    taken[base] = taken.get(base, -1) + 1
    return f"{base}:{taken[base]}" if taken[base] or not named else base


def _class_name(segment: Segment, index: int, count: int) -> str:
    if segment.prefix:
        return ".".join("*" if word.isdigit() else word for word in uncounted(segment.prefix).split("."))
    if count == 1:
        return "model"
    return "first" if index == 0 else "last" if index == count - 1 else "between"


def _settle(block: Block, name: str, blocks: dict[str, Block], known: dict[str, str]) -> str:
    """The name of an equal block already there, whatever it is called, or a new one."""
    key = repr(block)
    if key in known:
        return known[key]
    fresh, k = name, 2
    while fresh in blocks:
        fresh, k = f"{name}#{k}", k + 1
    blocks[fresh], known[key] = replace(block, name=fresh), fresh
    return fresh


def _source(name: str, home: dict[str, int], outputs: list[tuple[str, ...]]) -> Source:
    if name in INPUTS:
        return Source(-1, INPUTS.index(name))
    return Source(home[name], outputs[home[name]].index(name))
