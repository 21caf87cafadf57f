"""The plain module on the same batch, one document at a time: what a plan's program must equal."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourfold.backends.weights.initial import Initialised
from fourfold.hardware.errors import ModelError

Sequences = Sequence[Mapping[str, Tensor]]
"""The global batch: each with tokens, labels and weights, as `Program.step` takes them."""
NOISE = 0.02
"""Spread of what is added to tensors whose elements are all alike: nothing hides behind a bias of zero."""


@dataclass(frozen=True, slots=True)
class Course:
    """What both sides run: one step of SGD, then `steps` of AdamW, each clipped to norm `limit`."""

    limit: float
    sgd: float
    adamw: float
    eps: float
    steps: int

    def optimizers(self, parameters: Sequence[nn.Parameter]) -> Iterator[tuple[str, int, Any]]:
        """Each optimizer with its name and number of steps."""
        yield "sgd", 1, torch.optim.SGD(parameters, lr=self.sgd)
        if self.steps:
            yield "adamw", self.steps, torch.optim.AdamW(parameters, lr=self.adamw, eps=self.eps)


@dataclass(frozen=True, slots=True)
class Passed:
    """What a side found on its way through the course: the loss of each step, the first norm, the loss at the end."""

    losses: tuple[float, ...]
    norm: float
    evaluated: float


def run_course(
    parameters: Sequence[nn.Parameter],
    course: Course,
    *,
    step: Callable[[], float],
    clip: Callable[[float], float],
    evaluate: Callable[[], float],
    see: Callable[[str, Any], None],
) -> Passed:
    """Runs the course; `see` gets "gradient" after the first backward, then each optimizer's name with itself."""
    losses = [step()]
    see("gradient", None)
    norm = clip(course.limit)
    for name, steps, optimizer in course.optimizers(parameters):
        for _ in range(steps):
            if name != "sgd":
                optimizer.zero_grad()
                losses.append(step())
                clip(course.limit)
            optimizer.step()
        see(name, optimizer)
    return Passed(tuple(losses), norm, evaluate())


def brought_to_life(model: nn.Module, dtype: torch.dtype, seed: int) -> nn.Module:
    """A copy on the CPU with floating parameters in `dtype`: the model's own values, else its initialisers'.

    Tensors whose elements are all alike get a little noise. Raises ModelError listing what nothing sets.
    """
    source = Initialised(model, seed, torch.device("cpu")) if any(t.is_meta for t in _tensors(model)) else None
    generator = torch.Generator().manual_seed(seed)
    memo: dict[int, Any] = {}
    unset = []
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        found = source(name) if value.is_meta and source is not None else value.detach()
        if found is None:
            unset.append(name)
        elif isinstance(value, nn.Parameter):
            data = _roughened(found, dtype if value.is_floating_point() else value.dtype, generator)
            memo[id(value)] = nn.Parameter(data, requires_grad=value.requires_grad)
        else:
            memo[id(value)] = found.to("cpu", copy=True)
    if unset:
        raise ModelError(f"verify needs weights, and nothing sets {', '.join(unset[:8])}: give reset_parameters()")
    return copy.deepcopy(model, memo)


def reference(
    model: nn.Module, batch: Sequences, path: Path, *, dtype: torch.dtype, steps: int
) -> tuple[Course, Passed]:
    """The course, chosen by the size of the model's weights and gradients, and what the plain module found on it.

    The file `path` gets the weights, and after each part of the course every gradient or parameter:
    {"start": {name: tensor}, "gradient": ..., "sgd": ..., "adamw": ...}, buffers with the start.
    """
    twin = brought_to_life(model, dtype, seed=1).eval()
    parameters = [p for p in twin.parameters() if p.requires_grad]
    kept = {"start": {n: t.detach().clone() for n, t in (*twin.named_parameters(), *twin.named_buffers())}}

    def see(what: str, _: Any) -> None:
        grads = what == "gradient"
        values = ((n, p.grad if grads else p) for n, p in twin.named_parameters())
        kept[what] = {n: v.detach().clone() for n, v in values if v is not None}

    def step() -> float:
        loss = loss_of(twin, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    course = _course(twin, parameters, step, steps)
    passed = run_course(
        parameters,
        course,
        step=step,
        clip=lambda limit: float(nn.utils.clip_grad_norm_(parameters, limit)),
        evaluate=lambda: float(loss_of(twin, batch).detach()),
        see=see,
    )
    torch.save(kept, path)
    return course, passed


def loss_of(model: nn.Module, batch: Sequences) -> Tensor:
    """The batch's loss: each document alone, cross-entropy of each next token, by weight over all weight."""
    total: Tensor | float = 0.0
    weight = 0.0
    for item in batch:
        if len(item["tokens"]) < 2:
            continue
        logits_SV = _logits(model(item["tokens"][None]))[0]
        each_S = F.cross_entropy(logits_SV[:-1], item["labels"][1:], ignore_index=-100, reduction="none")
        counted_S = item["weights"][1:].to(each_S.dtype) * (item["labels"][1:] != -100)
        total = total + (each_S * counted_S).sum()
        weight += float(counted_S.double().sum())
    if not isinstance(total, Tensor) or weight == 0.0:
        raise ModelError("verify needs a batch with supervised targets")
    return total / weight


def _course(model: nn.Module, parameters: list[nn.Parameter], step: Callable[[], float], steps: int) -> Course:
    """Half the gradient's norm as the limit, so that clipping acts; updates of about a tenth of the weights.

    AdamW's eps lies ten times below a typical gradient, far above the rounding of a gradient that is zero.
    """
    step()
    gradient = math.sqrt(sum(float(p.grad.double().square().sum()) for p in parameters if p.grad is not None))
    weight = math.sqrt(sum(float(p.detach().double().square().sum()) for p in parameters))
    typical = math.sqrt(sum(p.numel() for p in parameters))
    model.zero_grad()
    limit = gradient / 2 or 1.0
    return Course(limit, 0.1 * weight / limit, 0.1 * weight / typical, 0.1 * limit / typical, steps)


def _roughened(value: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    found = value.to("cpu", dtype, copy=True)
    if dtype.is_floating_point and found.numel() and bool((found == found.flatten()[0]).all()):
        found += NOISE * torch.randn(found.shape, generator=generator, dtype=torch.float64).to(dtype)
    return found


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def _logits(output: Any) -> Tensor:
    """The model's logits: the output itself, its field `logits`, or its first [b, s, v] tensor."""
    if isinstance(output, Tensor):
        return output
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    found = [named] if isinstance(named, Tensor) else torch.utils._pytree.tree_leaves(output)
    return next(t for t in found if isinstance(t, Tensor) and t.dim() == 3)
