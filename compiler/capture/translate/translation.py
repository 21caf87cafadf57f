"""One exported op on its way to one of ours: its arguments by name, and how its result is added to the flat graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

import torch

from fourfold.hardware.errors import ModelError
from fourfold.ir.graph import Ref, Tensor


@dataclass(frozen=True, slots=True)
class Length:
    """A number that depends on the sequence length in a way no packed shape has, such as s + 1."""

    text: str


@dataclass(frozen=True, slots=True)
class Translation:
    """One exported node: `flat` emits, `args` holds the arguments by schema name."""

    flat: Any
    node: Any
    name: str
    overload: str
    args: dict[str, Any]

    def value(self) -> Tensor:
        """Packed shape and dtype of the result."""
        packed: Tensor = self.flat.packed(self.node.meta["val"], self.node)
        return packed

    def shape(self, ref: Ref) -> tuple[int, ...]:
        """Packed shape of an argument."""
        found: tuple[int, ...] = self.flat.shape(ref)
        return found

    def emit(self, op: str, *args: Any, value: Tensor | None = None, **kwargs: Any) -> Ref:
        """Appends `op(*args)` with this node's result shape unless another is given."""
        ref: Ref = self.flat.emit(self.node, op, args, value or self.value(), **kwargs)
        return ref

    def view(self, source: Ref, shape: tuple[int, ...]) -> Ref:
        """`source` reshaped; itself when it has that shape."""
        if self.shape(source) == shape:
            return source
        return self.emit("view", source, value=Tensor(shape, self.flat.dtype(source)))

    def refuse(self, why: str) -> NoReturn:
        """Raises ModelError: the module, the line, and `why`."""
        raise ModelError(f"{self.flat.where(self.node)} {why}")

    def dim(self, source: Ref, key: str = "dim", default: int = 0) -> int:
        """The argument `key` as a dim counted from the left."""
        rank = max(len(self.shape(source)), 1)
        return int(self.args.get(key, default)) % rank

    def same(self) -> Ref:
        """The op under its own name, arguments as they are; numbers made of the sequence length are refused."""
        if any(self.flat.symbolic(a) for a in (*self.node.args, *self.node.kwargs.values())):
            self.refuse(f"computes with the sequence length (aten.{self.name}): packed documents have none")
        if torch.Tag.nondeterministic_seeded in self.node.target.tags:
            self.refuse(f"draws random numbers (aten.{self.name}): only dropout may")
        schema = {a.name: a for a in self.node.target._schema.arguments}
        positional = tuple(v for k, v in self.args.items() if not schema[k].kwarg_only)
        keywords = {k: v for k, v in self.args.items() if schema[k].kwarg_only and v != schema[k].default_value}
        if isinstance(self.node.meta["val"], (tuple, list)):
            self.refuse(f"uses aten.{self.name}, which returns several tensors: no rule knows it")
        return self.emit(f"{self.name}.{self.overload}", *positional, **keywords)
