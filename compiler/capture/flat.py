"""The exported graph as flat nodes of our own few ops: one list, packed shapes, full module names."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field, replace
from typing import Any

import sympy
import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from fourfold.compiler.capture.translate import HANDLERS, Translation
from fourfold.hardware.errors import ModelError
from fourfold.ir.graph import TOKENS, Arg, Node, Part, Ref, Tensor

DROPPED = ("_assert_tensor_metadata", "_assert_scalar", "sym_constrain_range_for_size", "sym_constrain_range")
SAME = ("contiguous", "clone", "alias", "lift_fresh_copy", "lift_fresh", "detach_")


@dataclass(slots=True)
class Flat:
    """A captured model before folding: nodes in order, parameters and buffers by full name, the logits' value."""

    nodes: list[Node] = field(default_factory=list)
    parameters: dict[str, Tensor] = field(default_factory=dict)
    buffers: dict[str, Tensor] = field(default_factory=dict)
    output: str = ""
    parts: dict[str, Part] = field(default_factory=dict)

    def value(self, name: str) -> Tensor:
        """Shape and dtype of any value."""
        if name in self.parameters:
            return self.parameters[name]
        if name in self.buffers:
            return self.buffers[name]
        return next(n.value for n in self.nodes if n.name == name)


class Flattener:
    """Walks an exported program once; `env` maps its nodes to our arguments, `owner` a parameter to its first name."""

    def __init__(self, program: ExportedProgram, trainable: dict[str, bool], owner: dict[str, str]) -> None:
        self.program, self.owner = program, owner
        self.flat = Flat()
        self.env: dict[Any, Any] = {}
        self.trainable = trainable
        self.grad: dict[str, bool] = {}
        self.symbols: tuple[Any, Any] | None = None

    def run(self) -> Flat:
        """All nodes, translated."""
        specs = {spec.arg.name: spec for spec in self.program.graph_signature.input_specs}
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                self._placeholder(node, specs[node.name])
            elif node.op == "call_function":
                self._call(node)
            elif node.op == "output":
                self.flat.output = self._logits(node.args[0])
        return self.flat

    def packed(self, value: Any) -> Tensor:
        """Shape and dtype of an exported value with batch 1 and one token axis."""
        return Tensor(tuple(self.size(d) for d in value.shape), str(value.dtype).removeprefix("torch."))

    def size(self, dim: Any) -> int:
        """A dim as a number: `-k` for k times the tokens."""
        if isinstance(dim, int):
            return dim
        assert self.symbols is not None
        batch, sequence = self.symbols
        expression = sympy.expand(dim.node.expr.subs(batch, 1))
        if expression.is_number:
            return int(expression)
        ratio = sympy.simplify(expression / sequence)
        if ratio.is_number and ratio.is_integer and ratio > 0:
            return TOKENS * int(ratio)
        raise ModelError(
            f"a tensor has {dim} elements along one dim: only the token count itself, or a multiple, is supported"
        )

    def _placeholder(self, node: Any, spec: Any) -> None:
        value = node.meta["val"]
        if spec.kind == InputKind.USER_INPUT:
            self.symbols = tuple(d.node.expr for d in value.shape)  # type: ignore[assignment]
            self.env[node] = Ref("tokens")
            self.grad["tokens"] = False
            return
        tensor = Tensor(tuple(value.shape), str(value.dtype).removeprefix("torch."))
        name = self.owner.get(spec.target, spec.target)
        if spec.kind == InputKind.PARAMETER:
            self.flat.parameters[name] = replace(tensor, grad=self.trainable[name])
        else:
            self.flat.buffers[name] = tensor
        self.grad[name] = self.trainable.get(name, False)
        self.env[node] = Ref(name)

    def _call(self, node: Any) -> None:
        if node.target is operator.getitem:
            self.env[node] = self.arg(node.args[0])[node.args[1]]
            return
        if not hasattr(node.target, "_schema"):
            self._other(node)
            return
        name, overload = node.target._schema.name.split("::")[1], node.target._overloadname
        if name in DROPPED:
            return
        if name == "sym_size":
            self.env[node] = self.size(node.meta["val"])
        elif name in SAME:
            self.env[node] = self.arg(node.args[0])
        else:
            self.env[node] = self._translate(node, name, overload)

    def _other(self, node: Any) -> None:
        value = node.meta.get("val")
        if isinstance(value, (int, float, bool)) or hasattr(value, "node"):
            self.env[node] = self.size(value) if hasattr(value, "node") else value
            return
        raise ModelError(f"{self.module(node) or 'the model'} uses {node.target}, which cannot be captured")

    def _translate(self, node: Any, name: str, overload: str) -> Any:
        args = self.named_args(node)
        if name.endswith("_") and not name.startswith("_"):
            name = name[:-1]
        translation = Translation(self, node, name, overload or "default", args)
        handler = HANDLERS.get(name)
        result = handler(translation) if handler else translation.same()
        if node.target._schema.is_mutable:
            self.env[node.args[0]] = result
        return result

    def named_args(self, node: Any) -> dict[str, Any]:
        """The node's arguments by their schema's names, defaults filled in."""
        found = {}
        for i, argument in enumerate(node.target._schema.arguments):
            if i < len(node.args):
                found[argument.name] = self.arg(node.args[i])
            elif argument.name in node.kwargs:
                found[argument.name] = self.arg(node.kwargs[argument.name])
            elif argument.has_default_value():
                found[argument.name] = argument.default_value
        return found

    def arg(self, value: Any) -> Any:
        """An exported argument as ours: nodes become references, symbolic sizes become packed ones."""
        if isinstance(value, torch.fx.Node):
            return self.env[value]
        if isinstance(value, (list, tuple)):
            return tuple(self.arg(v) for v in value)
        if isinstance(value, torch.dtype):
            return str(value).removeprefix("torch.")
        if isinstance(value, (torch.device, torch.layout, torch.memory_format)):
            return None
        return self.size(value) if hasattr(value, "node") else value

    def module(self, node: Any) -> str:
        """Full name of the module that made the node."""
        stack = node.meta.get("nn_module_stack") or {}
        names = [path for path, kind in stack.values() if path and not path.startswith("_")]
        return names[-1].split("@")[0] if names else ""

    def emit(self, source: Any, op: str, args: tuple[Arg, ...], value: Tensor, **kwargs: Arg) -> Ref:
        """Appends one node and returns a reference to it; its gradient flows if any input's does."""
        node = Node(f"v{len(self.flat.nodes)}", op, args, tuple(kwargs.items()), value, self.module(source))
        floating = value.dtype.startswith(("float", "bfloat"))
        grad = floating and op != "detach" and any(self.grad[r] for r in node.refs())
        node = replace(node, value=replace(value, grad=grad))
        self.flat.nodes.append(node)
        self.grad[node.name] = grad
        return Ref(node.name)

    def shape(self, ref: Ref) -> tuple[int, ...]:
        """Packed shape of a value."""
        return (1, TOKENS) if ref.name == "tokens" else (TOKENS,) if ref.name == "positions" else self._made(ref).shape

    def dtype(self, ref: Ref) -> str:
        """Dtype of a value."""
        return "int64" if ref.name in ("tokens", "positions") else self._made(ref).dtype

    def _made(self, ref: Ref) -> Tensor:
        if ref.name.startswith("v") and ref.name[1:].isdigit():
            return self.flat.nodes[int(ref.name[1:])].value
        return self.flat.parameters.get(ref.name) or self.flat.buffers[ref.name]

    def _logits(self, args: Any) -> str:
        flat = torch.utils._pytree.tree_leaves(args)
        refs = [self.env[a] for a in flat if isinstance(a, torch.fx.Node)]
        found = [r for r in refs if isinstance(r, Ref) and len(self.shape(r)) == 3 and self.shape(r)[:2] == (1, TOKENS)]
        if not found:
            raise ModelError(
                "the model must return logits [batch, sequence, vocabulary]; it returns "
                + str([self.shape(r) for r in refs])
            )
        return found[0].name
