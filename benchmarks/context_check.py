"""Whether ranks that share a sequence compute what one alone does: loss, gradient norm and one gradient, in bf16.

Of a fresh model, loss and norm hardly tell which keys a query saw: attention to half of them changes the norm by a
thousandth. The gradient of the first layer's queries is then another altogether.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from typing import Any

import context_cases as cases
import ours
import stock_context as stock
import torch
import torch.distributed as dist
from measuring import Row, Shape, batches, forget
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from turns import Turns

from fourfold.compiler.capture import capture
from fourfold.compiler.models.llama import Llama
from fourfold.ir.graph import Graph
from fourfold.ir.mesh import Mesh

TOLERANCE = 1e-2
"""Of loss and norm, relative to those of one rank alone."""

DRIFT = 0.1
"""Of the gradient of `WEIGHT`: the norm of the difference, relative. Rounding in bf16 stays well below."""

WEIGHT = "layers.0.attention.q.weight"


def check(turns: Turns, device: torch.device, *, real: bool) -> None:
    """Writes numerics.json. "alone": every rank runs the same whole sequence, as data parallelism would."""
    case = cases.CHECK if real else cases.TOY_CHECK
    shape = Shape(case.config, case.length, device, warmup=1, steps=1)
    with torch.device("meta"):
        model = Llama(shape.config)
    graph = capture(model, torch.bfloat16 if real else torch.float32, cached=False)
    found = {"fourfold": _judged(_ours(turns, shape, graph, case))}
    if real:
        found["stock"] = _judged(_stock(turns, shape))
    passed = all(one["passed"] for checks in found.values() for one in checks.values())
    turns.write("numerics.json", {"tolerance": TOLERANCE, "drift allowed": DRIFT, "passed": passed, **found})


def _ours(turns: Turns, shape: Shape, graph: Graph, case: cases.Case) -> Iterator[Row]:
    ranks = dist.get_world_size()
    shared = list(cases.variants(graph, ranks, case))
    known: list[Tensor] = []
    whole = replace(shared[0].plan, mesh=Mesh(dp=ranks), zero=0, capacity=case.length)
    for variant in (ours.Variant("check alone", whole), *shared):

        def turn(variant: ours.Variant = variant) -> Row:
            sequences = list(batches(shape, 1)[0][:, :-1].unbind(0))
            sequences *= ranks if variant.plan is whole else 1
            with closing(ours.made(variant, shape)) as made:
                loss = made.program.step(sequences)
                norm = made.program.clip_grad_norm_(1e9)
                told = {"norm": norm, "drift": _drift(known, dict(made.program.named_parameters()))}
                return Row("check", variant.name, loss=loss, settings=told)

        yield from _taken(turns, variant.name, turn, shape)


def _stock(turns: Turns, shape: Shape) -> Iterator[Row]:
    known: list[Tensor] = []
    whole = replace(stock.FIRST, compiled="eager", rotate="")
    for variant in (whole, *stock.FORMS[:3]):

        def turn(variant: stock.Variant = variant) -> Row:
            forget(shape.device)
            with closing(stock.ContextProgram(shape, variant)) as made:
                loss, norm = made.gradients(batches(shape, 1)[0])
                told = {"norm": norm, "drift": _drift(known, dict(made.model.named_parameters()))}
                return Row("check", f"check {variant}", loss=loss, settings=told)

        yield from _taken(turns, f"check {variant}", turn, shape)


def _drift(known: list[Tensor], parameters: Mapping[str, nn.Parameter]) -> float:
    """How far the gradient is from the known one, which the first call keeps."""
    found = parameters[WEIGHT].grad
    assert found is not None
    whole = (found.full_tensor() if isinstance(found, DTensor) else found).float().cpu()
    known += [] if known else [whole]
    return float((whole - known[0]).norm() / known[0].norm())


def _taken(turns: Turns, name: str, turn: Any, shape: Shape) -> Iterator[Row]:
    row = turns.take("check", name, turn)
    forget(shape.device)
    if row is not None:
        yield row


def _judged(rows: Iterator[Row]) -> dict[str, dict[str, Any]]:
    """Each row beside the first, which is right by definition."""
    first, *others = rows
    found: dict[str, dict[str, Any]] = {first.name: _told(first) | {"passed": not first.error}}
    for row in others:
        if row.error or first.error:
            found[row.name] = {"error": row.error, "passed": False}
            continue
        wrong = {key: abs(_told(row)[key] / value - 1.0) for key, value in _told(first).items()}
        drift = row.settings["drift"]
        passed = all(one <= TOLERANCE for one in wrong.values()) and drift <= DRIFT
        found[row.name] = _told(row) | {"relative": wrong, "drift": drift, "passed": passed}
    return found


def _told(row: Row) -> dict[str, float]:
    return {"loss": row.loss, "norm": float(row.settings.get("norm", 0.0))}
