"""Code that export would record wrongly without a word: seen while the model runs, and refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.checkpoint as torch_checkpoint
from torch import nn

from fourfold.compiler.capture.placing import where
from fourfold.hardware.errors import ModelError

OURS = ("fourfold.", "torch.")
KNOBS = ("use_reentrant", "context_fn", "preserve_rng_state", "determinism_check", "debug", "early_stop")
GENERATOR = "_checkpoint_without_reentrant_generator"
"""What runs around a function whose user imported `checkpoint` by name; left alone where torch has it no more."""
ALIASING = frozenset(
    {"alias", "chunk", "contiguous", "detach", "diagonal", "expand", "expand_as", "flatten", "lift_fresh", "mT"}
    | {"movedim", "narrow", "numpy_T", "permute", "reshape", "select", "slice", "split", "split_with_sizes", "squeeze"}
    | {"swapaxes", "t", "to", "transpose", "type_as", "unbind", "unflatten", "unsqueeze", "view", "view_as"}
)
"""Ops whose result may share memory with their argument."""


@contextmanager
def watched() -> Iterator[list[str]]:
    """While open, calls of custom autograd functions raise; activation checkpointing is let through and noted."""
    notes: list[str] = []
    function: Any = torch.autograd.Function
    module: Any = torch_checkpoint
    apply, checkpoint = vars(function)["apply"], module.checkpoint
    inner_checkpoint = getattr(module, GENERATOR, None)

    def note() -> None:
        text = "torch.utils.checkpoint in the model is ignored: the plan decides what is recomputed"
        if text not in notes:
            notes.append(text)

    def refused(cls: type, *args: Any, **kwargs: Any) -> Any:
        if cls is torch_checkpoint.CheckpointFunction:
            note()
            return args[0](*args[2:])
        if cls.__module__.startswith(OURS):
            return apply.__func__(cls, *args, **kwargs)
        raise ModelError(
            f"{cls.__module__}.{cls.__qualname__} is a torch.autograd.Function: capture would keep its forward and "
            "lose its backward; write it as torch.library.custom_op with register_autograd, or in plain torch"
        )

    def transparent(inner: Any, *args: Any, **kwargs: Any) -> Any:
        note()
        return inner(*args, **{k: v for k, v in kwargs.items() if k not in KNOBS})

    def passing(*args: Any, **kwargs: Any) -> Iterator[None]:
        note()
        yield

    function.apply = classmethod(refused)
    module.checkpoint = transparent
    if inner_checkpoint is not None:
        setattr(module, GENERATOR, passing)
    try:
        yield notes
    finally:
        function.apply = apply
        module.checkpoint = checkpoint
        if inner_checkpoint is not None:
            setattr(module, GENERATOR, inner_checkpoint)


def refuse_stateful(model: nn.Module) -> None:
    """Raises ModelError for modules whose training state lives outside parameters, such as batch norm."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ModelError(f"{name} is a {type(module).__name__}: its statistics mix documents; use a layer norm")
        if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
            raise ModelError(
                f"{name} is a {type(module).__name__}: it carries a state from token to token; only attention may"
            )


def live(graph: torch.fx.Graph) -> set[Any]:
    """The nodes the output needs; what is written in place counts as needed."""
    found: set[Any] = set()
    for node in reversed(graph.nodes):
        if node.op == "output" or node in found or _writes(node):
            found.add(node)
            found.update(node.all_input_nodes)
    return found


def refuse_shared_writes(graph: torch.fx.Graph, needed: set[Any]) -> None:
    """Raises ModelError where memory is written in place and then read under another name.

    A write to a value is written as a new value; other views of the same memory would keep the old one.
    """
    order = {node: i for i, node in enumerate(graph.nodes)}
    family: dict[Any, set[Any]] = {}
    for node in graph.nodes:
        source = node.args[0] if node.args and isinstance(node.args[0], torch.fx.Node) else None
        shares = source is not None and (_op(node) in ALIASING or _writes(node) or _is_pick(node))
        members = family.setdefault(source, {source}) if shares else {node}
        members.add(node)
        family[node] = members
    for node in graph.nodes:
        if not _writes(node):
            continue
        written = node.args[0]
        if any(n.op == "placeholder" for n in family[written]):
            raise ModelError(f"{where(node)} writes into a parameter, buffer or input in place ({node.target})")
        others = family[written] - {written, node}
        late = [
            o for o in others if order[o] < order[node] and any(order[u] > order[node] and u in needed for u in o.users)
        ]
        if late:
            raise ModelError(
                f"{where(node)} writes in place ({node.target}) into memory that is read under another name "
                "afterwards: write out of place, for instance with torch.where or torch.cat"
            )


def _op(node: Any) -> str:
    schema = getattr(node.target, "_schema", None)
    return schema.name.split("::")[1] if schema is not None else ""


def _is_pick(node: Any) -> bool:
    return getattr(node.target, "__name__", "") == "getitem"


def _writes(node: Any) -> bool:
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.is_mutable:
        return False
    return _op(node) != "detach_" and any(a.alias_info is not None and a.alias_info.is_write for a in schema.arguments)
