"""From a plain module to a Graph: export, flatten, rewrite, end in the loss, fold, check."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import torch
from torch import nn

from fourfold.compiler.capture import cache
from fourfold.compiler.capture.exporting import exported
from fourfold.compiler.capture.flatten import Flattener
from fourfold.compiler.capture.fold import folded
from fourfold.compiler.capture.rewrite import REWRITES, drop_dead
from fourfold.compiler.capture.tail import with_loss
from fourfold.compiler.capture.tokenwise import check
from fourfold.ir.graph import Graph
from fourfold.ir.serial import to_json


def capture(
    model: nn.Module, dtype: torch.dtype = torch.float32, *, training: bool = True, cached: bool = True
) -> Graph:
    """The model's graph with parameters computed in `dtype`. No weight is read and none is allocated.

    Raises ModelError, naming the module, when the model cannot be packed or captured (see docs/architecture.md).
    """
    name = cache.key(model, dtype, training=training)
    found = cache.read(name) if cached else None
    if found is not None:
        return found
    # A user who builds on the meta device may still be inside that context: here tensors are on the CPU.
    with torch.device("cpu"):
        graph = _capture(model, dtype, training=training)
    if cached:
        cache.write(name, graph)
    return graph


def _capture(model: nn.Module, dtype: torch.dtype, *, training: bool) -> Graph:
    program, notes = exported(model, dtype, training=training)
    aliases = dict(model.named_parameters(remove_duplicate=False))
    owners = {id(p): name for name, p in model.named_parameters()}
    trainable = {name: p.requires_grad for name, p in aliases.items()}
    owner = {name: owners[id(p)] for name, p in aliases.items()}
    flat = Flattener(program, trainable, owner).run()
    for rewrite in REWRITES:
        flat = rewrite(flat)
    flat, suffix = with_loss(flat)
    flat = drop_dead(flat)
    blocks, calls = folded(flat)
    notes += [note for block in blocks.values() for note in check(block)]
    used = {call.fqn(p) for call in calls for p in blocks[call.block].parameters}
    tied = {alias: name for alias, name in owner.items() if alias != name}
    parts = {name: part for name, part in flat.parts.items() if name in used}
    graph = Graph(type(model).__name__, "", blocks, calls, tied, parts, suffix, tuple(notes))
    digest = hashlib.sha256(to_json(replace(graph, notes=())).encode()).hexdigest()[:16]
    return replace(graph, fingerprint=digest)
