"""Proves that only attention looks from one token to another, so that documents can be packed and cut anywhere."""

from __future__ import annotations

from collections.abc import Mapping

from fourfold.compiler.capture.probe import is_tokenwise
from fourfold.hardware.errors import ModelError
from fourfold.ir.graph import TOKENS, Block, Node, Tensor
from fourfold.ir.ops import UNKNOWN, op_of, rules
from fourfold.ir.rule import State


def check(block: Block) -> tuple[str, ...]:
    """Raises ModelError at the first node that mixes tokens; returns a note for each op without a rule."""
    values = block.values()
    notes: dict[str, None] = {}
    for node in block.nodes:
        where = _where(block, node)
        if op_of(node) is UNKNOWN:
            _probe(node, values, where)
            notes[f"aten.{node.op} in {where} has no rule: computed whole on every tensor rank"] = None
            continue
        touched = any(TOKENS in values[r].shape for r in node.refs())
        if touched and node.op != "attention" and not _token_cut(node, values):
            raise ModelError(f"{node.op} in {where} mixes tokens of the sequence: only attention may")
    return tuple(notes)


def _where(block: Block, node: Node) -> str:
    prefix = block.name.split("#")[0] if "*" in block.name else ""
    return ".".join(filter(None, (prefix, node.module))) or "the model"


def _probe(node: Node, values: Mapping[str, Tensor], where: str) -> None:
    found = is_tokenwise(node, values)
    if found:
        return
    why = "mixes tokens of the sequence" if found is False else "has no rule, so whether it mixes tokens is unknown"
    raise ModelError(
        f"aten.{node.op} in {where} {why}; add one line for it to a table of fourfold/ir/ops, "
        "or write it with known ops"
    )


def _token_cut(node: Node, values: Mapping[str, Tensor]) -> bool:
    """Whether cutting the token dim of every input cuts that of the output, with nothing else moved."""
    wanted = [_token_state(values[r]) for r in node.refs()]
    for rule in rules(node, values):
        for cut in rule.cuts(2):
            if rule.sizes.get(cut) != TOKENS:
                continue
            needs = rule.needs(cut)
            if all(w is None or w == n for w, n in zip(wanted, needs, strict=True)):
                return node.op == "loss" or rule.gives(cut) == _token_state(node.value)
    return False


def _token_state(value: Tensor) -> State | None:
    """The state of a value cut along its token dim; None if it has none."""
    at = next((i for i, size in enumerate(value.shape) if size < 0), None)
    return None if at is None else State("S", at)
