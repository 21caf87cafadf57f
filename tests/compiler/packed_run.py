"""One process's loss and gradients of a captured graph on packed documents, by the code that training uses."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourfold.backends.communication.collectives import Axis
from fourfold.backends.kernels.documents import Documents
from fourfold.backends.kernels.linear_loss import Vocabulary, linear_cross_entropy
from fourfold.backends.lowering.emit import suffix_function
from fourfold.backends.lowering.lower import Mixer, Region, lower
from fourfold.backends.stage.runner import Runner
from fourfold.ir.graph import Graph
from fourfold.ir.plan import Layout

LENGTHS = (7, 1, 12, 30, 9)


def documents(vocabulary: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, vocabulary, (n,), generator=generator).tolist() for n in LENGTHS]


def plain_loss(model: nn.Module, batch: list[list[int]]) -> Tensor:
    """Mean cross-entropy of the next token, one document at a time."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for document in batch:
        tokens = torch.tensor(document)
        if len(document) > 1:
            found = model(tokens[None])
            found = found["logits"] if isinstance(found, dict) else found[0] if isinstance(found, tuple) else found
            total = total + F.cross_entropy(found[0, :-1], tokens[1:], reduction="sum")
            count += len(document) - 1
    return total / count


def packed(batch: list[list[int]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tokens [1, T], positions, next tokens and loss weights [T] of the documents, one after another."""
    tokens = torch.tensor([t for d in batch for t in d])
    positions = torch.cat([torch.arange(len(d)) for d in batch])
    targets = torch.tensor([t for d in batch for t in (*d[1:], -100)])
    return tokens[None], positions, targets, (targets >= 0).float()


def packed_loss(graph: Graph, model: nn.Module, batch: list[list[int]], *, training: bool = True) -> Tensor:
    """The same by the graph, all documents packed."""
    suffix = suffix_function(graph.suffix) if graph.suffix else None

    def loss(step: Mixer, inputs: tuple[Tensor, ...]) -> Tensor:
        x, weight, targets, weights, *parameters = inputs
        weight = weight.t() if dict(step.node.kwargs).get("transposed") else weight
        whole = Vocabulary(0, weight.shape[0])
        scale = 1.0 / sum(len(d) - 1 for d in batch)
        return linear_cross_entropy(
            x[0],
            weight,
            targets,
            weights,
            scale=scale,
            chunk=16,
            vocab=whole,
            suffix=suffix,
            parameters=tuple(parameters),
        )

    tensors = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    runners = {}
    for name, block in graph.blocks.items():
        low = lower(block, Layout(), Axis(), torch.device("cpu"), training=training)
        functions = tuple(s.function if isinstance(s, Region) else None for s in low.steps)
        runners[name] = Runner(low, functions, Axis(), loss)
    given = packed(batch)
    places = Documents.of([len(d) for d in batch], "cpu")
    made: list[tuple[Tensor, ...]] = []
    for call in graph.calls:
        block = graph.blocks[call.block]
        inputs = tuple(given[s.output] if s.call < 0 else made[s.call][s.output] for s in call.sources)
        held = {name: _tensor(call.fqn(name), graph, tensors) for name in (*block.parameters, *block.buffers)}
        made.append(runners[call.block].run(inputs, lambda held=held: held, places))
    return made[-1][0]


def _tensor(name: str, graph: Graph, tensors: dict[str, Tensor]) -> Tensor:
    part = graph.parts.get(name)
    return tensors[name] if part is None else tensors[part.of].narrow(part.dim, part.start, part.stop - part.start)


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """The gradient of every trainable parameter."""
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {
        n: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for n, p in model.named_parameters()
        if p.requires_grad
    }
