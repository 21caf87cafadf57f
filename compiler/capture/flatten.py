"""Walks an exported program once and writes it as a Flat: dead code left out, inner graphs inlined, sizes packed."""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Any

import sympy
import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec

from fourfold.compiler.capture.flat import GIVEN, Flat
from fourfold.compiler.capture.placing import frame, where
from fourfold.compiler.capture.translate import ALIASES, HANDLERS, Length, Translation
from fourfold.compiler.capture.traps import live, refuse_shared_writes
from fourfold.hardware.errors import ModelError
from fourfold.ir.graph import TOKENS, Arg, Node, Ref, Tensor

DROPPED = ("_assert_tensor_metadata", "_assert_scalar", "sym_constrain_range_for_size", "sym_constrain_range")
SAME = ("contiguous", "clone", "alias", "lift_fresh_copy", "lift_fresh", "detach_", "positive")


class Flattener:
    """`env` maps exported nodes to our arguments, `owner` a parameter to its first name."""

    def __init__(self, program: ExportedProgram, trainable: dict[str, bool], owner: dict[str, str]) -> None:
        self.program, self.owner, self.trainable = program, owner, trainable
        self.flat = Flat()
        self.env: dict[Any, Any] = {}
        self.made: dict[str, Tensor] = dict(GIVEN)
        self.grad: dict[str, bool] = dict.fromkeys(GIVEN, False)
        self.symbols: tuple[Any, Any] | None = None
        self.sizes: dict[Any, int | None] = {}

    def run(self) -> Flat:
        """All nodes the logits need, translated."""
        specs = {spec.arg.name: spec for spec in self.program.graph_signature.input_specs}
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                self._placeholder(node, specs[node.name])
        self.flat.output = self._logits(self._walk(self.program.graph_module))
        return self.flat

    def packed(self, value: Any, node: Any) -> Tensor:
        """Shape and dtype of an exported value with batch 1 and one token axis. Raises ModelError if it has another."""
        dtype = str(value.dtype).removeprefix("torch.")
        if dtype.startswith("complex"):
            raise ModelError(
                f"{where(node)} uses complex numbers ({node.target}): write rotary positions with cos and sin instead"
            )
        shape = []
        for dim in value.shape:
            size = self.size(dim)
            if size is None:
                raise ModelError(f"{where(node)} has a tensor with {dim} elements along one dim{_advice(node)}")
            shape.append(size)
        if sum(size < 0 for size in shape) > 1:
            raise ModelError(f"{where(node)} makes a [sequence x sequence] tensor{_advice(node)}")
        return Tensor(tuple(shape), dtype)

    def size(self, dim: Any) -> int | None:
        """A dim as a number: `-k` for k times the tokens, None if it is neither."""
        if not hasattr(dim, "node"):
            return int(dim)
        key = dim.node.expr
        if key not in self.sizes:
            self.sizes[key] = self._ratio(key)
        return self.sizes[key]

    def _ratio(self, expression: Any) -> int | None:
        assert self.symbols is not None
        batch, sequence = self.symbols
        expression = sympy.expand(expression.subs(batch, 1))
        if expression.is_number:
            return int(expression) if expression.is_integer else None
        ratio = sympy.simplify(expression / sequence)
        return TOKENS * int(ratio) if ratio.is_number and ratio.is_integer and ratio > 0 else None

    def symbolic(self, value: Any) -> bool:
        """Whether an exported argument is, or holds, a number made of the batch or sequence length."""
        if isinstance(value, (list, tuple)):
            return any(self.symbolic(v) for v in value)
        return hasattr(getattr(value, "meta", {}).get("val"), "node") or hasattr(value, "node")

    def _placeholder(self, node: Any, spec: Any) -> None:
        if spec.kind == InputKind.USER_INPUT:
            self.symbols = tuple(d.node.expr for d in node.meta["val"].shape)
            self.env[node] = Ref("tokens")
            return
        if spec.kind == InputKind.CONSTANT_TENSOR:
            self.env[node] = spec
            return
        value = node.meta["val"]
        learned = spec.kind == InputKind.PARAMETER
        # A parameter that is one number is kept as a row of one: shards have a first dim.
        shape = tuple(value.shape) or ((1,) if learned else ())
        tensor = Tensor(shape, str(value.dtype).removeprefix("torch."))
        name = self.owner.get(spec.target, spec.target)
        table = self.flat.parameters if learned else self.flat.buffers
        self.grad[name] = learned and self.trainable[name]
        table[name] = self.made[name] = replace(tensor, grad=self.grad[name])
        self.env[node] = Ref(name)

    def _walk(self, module: torch.fx.GraphModule) -> Any:
        """Translates the calls of one graph that its output needs; the raw output arguments."""
        needed = live(module.graph)
        refuse_shared_writes(module.graph, needed)
        for node in module.graph.nodes:
            if node.op == "output":
                return node.args[0]
            if node.op == "call_function" and node in needed:
                self._call(node, module)
        return ()

    def _call(self, node: Any, module: torch.fx.GraphModule) -> None:
        if node.target is operator.getitem:
            self.env[node] = self.arg(node.args[0])[node.args[1]]
            return
        if not hasattr(node.target, "_schema"):
            self._other(node, module)
            return
        name, overload = node.target._schema.name.split("::")[1], node.target._overloadname
        if name in DROPPED:
            return
        if node.meta.get("unbacked_bindings"):
            raise ModelError(
                f"{where(node)} uses aten.{name}: its result's size, or a number read from it (.item(), .tolist()), "
                "depends on the data; compute with tensors instead (torch.where), or move it out of forward"
            )
        if name == "sym_size":
            self.env[node] = self._number(node.meta["val"])
        elif name in SAME:
            self.env[node] = self.arg(node.args[0] if node.args else node.kwargs["self"])
        else:
            self.env[node] = self._translate(node, name, overload)

    def _other(self, node: Any, module: torch.fx.GraphModule) -> None:
        """Arithmetic on sizes, and graphs within the graph."""
        value = node.meta.get("val")
        if isinstance(value, (int, float, bool)) or hasattr(value, "node"):
            self.env[node] = self._number(value)
            return
        kind = getattr(node.target, "__name__", str(node.target))
        if kind == "wrap_with_set_grad_enabled":
            enabled, inner, *given = node.args
            self.env[node] = self._inlined(node, getattr(module, inner.target), given, detached=not enabled)
        elif kind == "wrap_with_autocast" and not node.args[2]:
            _, _, _, _, inner, *given = node.args
            self.env[node] = self._inlined(node, getattr(module, inner.target), given, detached=False)
        elif kind == "wrap_with_autocast":
            raise ModelError(
                f"{where(node)} runs under torch.autocast: the plan's precision decides dtypes; leave autocast out, or "
                "cast with .to()"
            )
        else:
            raise ModelError(f"{where(node)} uses {kind}, which cannot be captured")

    def _inlined(self, node: Any, inner: torch.fx.GraphModule, given: list[Any], *, detached: bool) -> Any:
        """The results of an inner graph, written in place; without gradients its inputs are detached first."""
        places = [n for n in inner.graph.nodes if n.op == "placeholder"]
        for place, value in zip(places, given, strict=True):
            found = self.arg(value)
            if detached and isinstance(found, Ref) and self.grad[found.name]:
                found = self.emit(node, "detach", (found,), self.made[found.name])
            self.env[place] = found
        return self.arg(self._walk(inner))

    def _translate(self, node: Any, name: str, overload: str) -> Any:
        args = self.named_args(node)
        if name.endswith("_") and not name.startswith("_"):
            name = name[:-1]
        name = ALIASES.get(name, name)
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
            found = self.env[value]
            if isinstance(found, Ref) and found.name in self.flat.parameters and not value.meta["val"].shape:
                return self.emit(value, "view", (found,), replace(self.made[found.name], shape=()))
            return self._constant(value, found) if isinstance(found, InputSpec) else found
        if isinstance(value, (list, tuple)):
            return tuple(self.arg(v) for v in value)
        if isinstance(value, torch.dtype):
            return str(value).removeprefix("torch.")
        if isinstance(value, (torch.device, torch.layout, torch.memory_format)):
            return None
        return self._number(value) if hasattr(value, "node") else value

    def _number(self, value: Any) -> Any:
        """A plain number, a packed size, or a Length."""
        if not hasattr(value, "node"):
            return value
        found = self.size(value)
        return Length(str(value.node.expr)) if found is None else found

    def _constant(self, node: Any, spec: Any) -> Ref:
        """A tensor made in forward by torch.tensor(number) is that number; any other must be a buffer."""
        data = self.program.constants.get(spec.target)
        if data is None or data.numel() != 1 or data.is_meta:
            made = "lifted_tensor" in spec.target
            what = f"{where(next(iter(node.users)))} makes a constant (torch.tensor, or a list as an index)"
            raise ModelError(
                f"{what if made else spec.target + ' is a tensor'} that is neither parameter nor buffer: keep it with "
                "register_buffer"
            )
        value = Tensor(tuple(data.shape), str(data.dtype).removeprefix("torch."))
        self.env[node] = self.emit(node, "full", (data.item(), value.dtype), value)
        found: Ref = self.env[node]
        return found

    def emit(self, source: Any, op: str, args: tuple[Arg, ...], value: Tensor, **kwargs: Arg) -> Ref:
        """Appends one node and returns a reference to it; its gradient flows if any input's does."""
        node = Node(f"v{len(self.flat.nodes)}", op, args, tuple(kwargs.items()), value, frame(source))
        given: tuple[Any, ...] = (*args, *kwargs.values())
        length = next((a for a in given if isinstance(a, Length)), None)
        if length is not None:
            raise ModelError(f"{where(source)} computes with the sequence length ({length.text}): documents are packed")
        floating = value.dtype.startswith(("float", "bfloat"))
        grad = floating and op != "detach" and any(self.grad[r] for r in node.refs())
        node = replace(node, value=replace(value, grad=grad))
        self.flat.nodes.append(node)
        self.grad[node.name], self.made[node.name] = grad, node.value
        return Ref(node.name)

    def shape(self, ref: Ref) -> tuple[int, ...]:
        """Packed shape of a value."""
        return self.made[ref.name].shape

    def dtype(self, ref: Ref) -> str:
        """Dtype of a value."""
        return self.made[ref.name].dtype

    def where(self, node: Any) -> str:
        """Module and line of an exported node, for messages."""
        return where(node)

    def _logits(self, args: Any) -> str:
        """The output called logits, else the first one shaped like them."""
        spec = self.program.call_spec.out_spec
        names = ["".join(str(k) for k in path) for path, _ in _paths(spec, args)]
        refs = [self.arg(a) for a in args]
        shaped = [
            (n, r)
            for n, r in zip(names, refs, strict=True)
            if isinstance(r, Ref) and len(self.shape(r)) == 3 and self.shape(r)[:2] == (1, TOKENS)
        ]
        if not shaped:
            shapes = [self.shape(r) if isinstance(r, Ref) else r for r in refs]
            raise ModelError(f"the model must return logits [batch, sequence, vocabulary]; it returns {shapes}")
        found: str = next((r.name for n, r in shaped if "logits" in n), shaped[0][1].name)
        return found


def _paths(spec: Any, args: Any) -> Any:
    """Each output with the path it has in what the model returns."""
    return torch.utils._pytree.tree_flatten_with_path(torch.utils._pytree.tree_unflatten(list(args), spec))[0]


def _advice(node: Any) -> str:
    """What to write instead, for the products and masks of attention by hand."""
    return (
        f" ({getattr(node.target, '__name__', node.target)}): documents are packed, so attention and its masks cannot "
        "be written by hand; use F.scaled_dot_product_attention(q, k, v, is_causal=True)"
    )
