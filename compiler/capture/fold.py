"""Cuts the flat graph into calls at the modules of the repeated list, and writes equal ones once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from fourfold.compiler.capture.flat import Flat
from fourfold.compiler.capture.rewrite import renamed
from fourfold.ir.graph import INPUTS, TOKENS, Block, Call, Node, Ref, Source, Tensor

GIVEN: Mapping[str, Tensor] = {
    "tokens": Tensor((1, TOKENS), "int64"),
    "positions": Tensor((TOKENS,), "int64"),
    "targets": Tensor((TOKENS,), "int64"),
    "weights": Tensor((TOKENS,), "float32"),
}


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of nodes that belong together: under one module, or the glue before, between and after."""

    prefix: str
    nodes: tuple[Node, ...]


def folded(flat: Flat) -> tuple[dict[str, Block], tuple[Call, ...]]:
    """Blocks by name and the calls in order."""
    segments = _segments(flat)
    home = {node.name: i for i, segment in enumerate(segments) for node in segment.nodes}
    outputs = [_outputs(i, segment, segments, flat) for i, segment in enumerate(segments)]
    blocks: dict[str, Block] = {}
    calls = []
    for i, segment in enumerate(segments):
        block, sources = _block(segment, outputs[i], flat)
        name = _settle(block, _class_name(segment, i, len(segments)), blocks)
        where = tuple(_source(s, home, outputs) for s in sources)
        calls.append(Call(name, segment.prefix, where))
    return blocks, tuple(calls)


def _segments(flat: Flat) -> list[Segment]:
    repeated = _repeated(flat)
    runs: list[tuple[str, list[Node]]] = []
    for node in flat.nodes:
        prefix = _prefix(node.module)
        prefix = prefix if prefix in repeated else ""
        if not runs or runs[-1][0] != prefix:
            runs.append((prefix, []))
        runs[-1][1].append(node)
    return [Segment(prefix, tuple(nodes)) for prefix, nodes in _joined(runs)]


def _joined(runs: list[tuple[str, list[Node]]]) -> list[tuple[str, list[Node]]]:
    """Glue that reads nothing and stands inside a module's run joins that run."""
    out: list[tuple[str, list[Node]]] = []
    for prefix, nodes in runs:
        if len(out) >= 2 and out[-2][0] == prefix and prefix and not out[-1][0]:
            glue = out.pop()
            out[-1][1].extend([*glue[1], *nodes])
        else:
            out.append((prefix, nodes))
    return out


def _prefix(module: str) -> str:
    """The module's name up to its first list index: `layers.3.attention.q` --> `layers.3`."""
    words = module.split(".")
    at = next((i for i, word in enumerate(words) if word.isdigit()), None)
    return "" if at is None else ".".join(words[: at + 1])


def _repeated(flat: Flat) -> set[str]:
    """Prefixes that stand for blocks: those whose modules hold attention, or at least two parameters."""
    names: dict[str, set[str]] = {}
    mixing = set()
    for node in flat.nodes:
        prefix = _prefix(node.module)
        names.setdefault(prefix, set()).update(r for r in node.refs() if r in flat.parameters)
        if node.op == "attention":
            mixing.add(prefix)
    return {p for p, used in names.items() if p and (p in mixing or len(used) >= 2)}


def _outputs(index: int, segment: Segment, segments: list[Segment], flat: Flat) -> tuple[str, ...]:
    """Values read by later segments, in order of making; the loss for the last."""
    later = {r for other in segments[index + 1 :] for node in other.nodes for r in node.refs()} | {flat.output}
    return tuple(node.name for node in segment.nodes if node.name in later)


def _block(segment: Segment, outputs: tuple[str, ...], flat: Flat) -> tuple[Block, list[str]]:
    """The segment under local names, and the outside names of its inputs."""
    local: dict[str, Ref] = {}
    inputs: dict[str, Tensor] = {}
    parameters: dict[str, Tensor] = {}
    buffers: dict[str, Tensor] = {}
    sources: list[str] = []
    nodes = []
    taken: dict[str, int] = dict.fromkeys(INPUTS, 0)
    made = {node.name: node for node in flat.nodes}
    for node in segment.nodes:
        for name in node.refs():
            if name in local:
                continue
            if name in flat.parameters or name in flat.buffers:
                short = _relative(name, segment.prefix)
                table = parameters if name in flat.parameters else buffers
                table[short] = flat.parameters.get(name) or flat.buffers[name]
                local[name] = Ref(short)
            else:
                short = name if name in INPUTS else f"in{sum(s not in INPUTS for s in sources)}"
                inputs[short] = GIVEN[name] if name in INPUTS else made[name].value
                local[name] = Ref(short)
                sources.append(name)
        short = _local_name(node, segment.prefix, taken)
        local[node.name] = Ref(short)
        nodes.append(replace(renamed(node, local), name=short, module=_relative(node.module, segment.prefix)))
    block = Block("", inputs, parameters, buffers, tuple(nodes), tuple(local[o].name for o in outputs))
    return block, sources


def _relative(name: str, prefix: str) -> str:
    return name.removeprefix(prefix + ".") if prefix and name != prefix else ("" if name == prefix else name)


def _local_name(node: Node, prefix: str, taken: dict[str, int]) -> str:
    """`attention.q` for a layer's product, the op's own name for the rest; numbered when taken."""
    named = node.op in ("linear", "matmul", "embedding", "rms_norm", "layer_norm") and _relative(node.module, prefix)
    base = _relative(node.module, prefix) if named else node.op.split(".")[0]
    taken[base] = taken.get(base, -1) + 1
    return f"{base}:{taken[base]}" if taken[base] or not named else base


def _class_name(segment: Segment, index: int, count: int) -> str:
    if segment.prefix:
        return ".".join("*" if word.isdigit() else word for word in segment.prefix.split("."))
    if count == 1:
        return "model"
    return "first" if index == 0 else "last" if index == count - 1 else "between"


def _settle(block: Block, name: str, blocks: dict[str, Block]) -> str:
    """The name of an equal block already there, or a new one."""
    for other in blocks.values():
        if replace(other, name="") == block and other.name.split("#")[0] == name:
            return other.name
    fresh, k = name, 2
    while fresh in blocks:
        fresh, k = f"{name}#{k}", k + 1
    blocks[fresh] = replace(block, name=fresh)
    return fresh


def _source(name: str, home: dict[str, int], outputs: list[tuple[str, ...]]) -> Source:
    if name in INPUTS:
        return Source(-1, INPUTS.index(name))
    return Source(home[name], outputs[home[name]].index(name))
