"""The model as a value: a few block classes and the calls that chain them.

A captured model is a short program. Each `Block` is one class of identical modules (the embedding, the layer, the
head), written once; each `Call` applies a block under its module's name. All shapes are packed: the batch is 1 and
one axis, written `TOKENS`, holds the tokens of all documents of a micro-step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

TOKENS = -1
"""The size of the packed token axis in a shape: known only when a micro-step runs."""


@dataclass(frozen=True, slots=True)
class Ref:
    """A use of a value of the same block: a node, an input, a parameter or a buffer."""

    name: str

    def __repr__(self) -> str:
        return f"%{self.name}"


Arg = Ref | int | float | bool | str | None | tuple["Arg", ...]


@dataclass(frozen=True, slots=True)
class Tensor:
    """Shape and dtype of a value; `grad` says whether a gradient flows into it."""

    shape: tuple[int, ...]
    dtype: str
    grad: bool = False


@dataclass(frozen=True, slots=True)
class Node:
    """One operation: `name = op(*args, **kwargs)`, made by the module `module` (relative to the call's prefix)."""

    name: str
    op: str
    args: tuple[Arg, ...]
    kwargs: tuple[tuple[str, Arg], ...]
    value: Tensor
    module: str = ""

    def refs(self) -> tuple[str, ...]:
        """Names of the values this node reads, in order, repeats kept."""
        return tuple(_refs((*self.args, *(v for _, v in self.kwargs))))

    def __str__(self) -> str:
        shape = " ".join("T" if d == TOKENS else str(d) for d in self.value.shape)
        words = [_show(a) for a in self.args] + [f"{k}={_show(v)}" for k, v in self.kwargs]
        return f"{self.name} [{shape}] = {self.op}({', '.join(words)})"


@dataclass(frozen=True, slots=True)
class Block:
    """One class of identical modules: inputs and parameters by name, nodes in order, names of the outputs."""

    name: str
    inputs: Mapping[str, Tensor]
    parameters: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]

    def value(self, name: str) -> Tensor:
        """Shape and dtype of any value of the block."""
        for table in (self.inputs, self.parameters, self.buffers):
            if name in table:
                return table[name]
        return next(node.value for node in self.nodes if node.name == name)

    def values(self) -> dict[str, Tensor]:
        """All values by name: inputs, parameters, buffers, nodes."""
        made = {node.name: node.value for node in self.nodes}
        return {**self.inputs, **self.parameters, **self.buffers, **made}

    def __str__(self) -> str:
        head = f"{self.name}({', '.join(self.inputs)}) -> {', '.join(self.outputs)}"
        return "\n".join([head, *(f"  {node}" for node in self.nodes)])


@dataclass(frozen=True, slots=True)
class Source:
    """Where a call's argument comes from: output `output` of call `call`, or (-1) the graph input of that index."""

    call: int
    output: int


ABSOLUTE = "/"
"""Marks a tensor's full name inside a block that has a prefix of its own: a weight that lives elsewhere."""


@dataclass(frozen=True, slots=True)
class Call:
    """One application of a block: parameters live under `prefix` (a module FQN, "" for the model itself)."""

    block: str
    prefix: str
    sources: tuple[Source, ...]

    def fqn(self, name: str) -> str:
        """Full name of a parameter or buffer of this call."""
        if name.startswith(ABSOLUTE):
            return name.removeprefix(ABSOLUTE)
        return f"{self.prefix}.{name}" if self.prefix else name


@dataclass(frozen=True, slots=True)
class Part:
    """Rows `start:stop` along `dim` of a fused parameter `of`, kept as a parameter of its own."""

    of: str
    dim: int
    start: int
    stop: int


INPUTS = ("tokens", "positions", "targets", "weights")
"""What every micro-step provides, each [T]: token ids, positions inside the document, next tokens, loss weights."""


@dataclass(frozen=True)
class Graph:
    """A whole model, tokens -> loss.

    `tied` maps other names of a shared parameter to the one used here; `parts` lists split fused weights; `suffix`
    holds the elementwise nodes that turn the head's product, called `logits`, into the model's logits.
    """

    name: str
    fingerprint: str
    blocks: Mapping[str, Block]
    calls: tuple[Call, ...]
    tied: Mapping[str, str] = field(default_factory=dict)
    parts: Mapping[str, Part] = field(default_factory=dict)
    suffix: tuple[Node, ...] = ()
    notes: tuple[str, ...] = ()

    def parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter once, by full name."""
        found = {call.fqn(n): v for call in self.calls for n, v in self.blocks[call.block].parameters.items()}
        yield from found.items()

    @cached_property
    def counts(self) -> dict[str, int]:
        """How often each block is called."""
        found = dict.fromkeys(self.blocks, 0)
        for call in self.calls:
            found[call.block] += 1
        return found

    def __str__(self) -> str:
        runs: list[list[str | int]] = []
        for call in self.calls:
            if runs and runs[-1][0] == call.block:
                runs[-1][1] = int(runs[-1][1]) + 1
            else:
                runs.append([call.block, 1])
        order = " -> ".join(f"{name} x{n}" if n != 1 else str(name) for name, n in runs)
        return "\n".join([f"{self.name}: {order}", *(str(block) for block in self.blocks.values())])


def _refs(args: tuple[Arg, ...]) -> Iterator[str]:
    for arg in args:
        if isinstance(arg, Ref):
            yield arg.name
        elif isinstance(arg, tuple):
            yield from _refs(arg)


def _show(arg: Arg) -> str:
    if isinstance(arg, tuple):
        return "[" + ", ".join(_show(a) for a in arg) + "]"
    return repr(arg) if isinstance(arg, Ref) else str(arg)
