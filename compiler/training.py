"""Trains a Program on a corpus: warm-up, decay, clipping, a row of figures a step; whole weights and samples after."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

import torch
from torch import nn

from fourfold.backends.program import Program
from fourfold.compiler.corpus import SYMBOLS, Corpus
from fourfold.hardware.errors import RunError


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train. `rate` is the peak learning rate: reached after `warmup` steps, brought to a tenth by a cosine."""

    steps: int
    tokens: int
    rate: float = 3e-3
    warmup: int = 10
    clip: float = 1.0
    decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    seed: int = 0

    def rate_at(self, step: int) -> float:
        """The learning rate of step 0, 1, ..."""
        rising = min(1.0, (step + 1) / max(1, self.warmup))
        falling = 0.1 + 0.45 * (1 + math.cos(math.pi * step / max(1, self.steps)))
        return self.rate * rising * falling


@dataclass(frozen=True, slots=True)
class Row:
    """The figures of one step: loss in nats a token, the gradient's norm, tokens, seconds, and what was predicted.

    `compiled` counts the graphs torch.compile has made so far; `peak` is the device memory this rank allocated at most.
    """

    step: int
    loss: float
    norm: float
    tokens: int
    seconds: float
    predicted: float | None
    compiled: int
    peak: int


@dataclass(frozen=True, slots=True)
class Keep:
    """Where to save checkpoints, after how many steps (0: at the end only), and the one to start from."""

    folder: Path | None = None
    every: int = 0
    resume: Path | None = None

    def due(self, done: int, steps: int) -> bool:
        """Whether to save after `done` steps."""
        return self.folder is not None and (done == steps or (self.every > 0 and done % self.every == 0))


def train(
    program: Program,
    corpus: Corpus,
    recipe: Recipe,
    *,
    predicted: float | None = None,
    write: Callable[[Row], None] = lambda row: None,
    keep: Keep | None = None,
) -> tuple[Row, ...]:
    """Trains the program on, from its weights or from a checkpoint; `write` is told each step.

    A checkpoint taken in the middle and continued, under the same plan, gives the same rows. Raises RunError when the
    loss is no number, and what saving and loading raise.
    """
    keep = keep or Keep()
    settings = {"lr": recipe.rate, "betas": recipe.betas, "weight_decay": recipe.decay}
    optimizer = torch.optim.AdamW(list(program.parameters()), **settings)  # type: ignore[arg-type]
    if keep.resume is not None:
        program.load(keep.resume, optimizer)
    rows = []
    for step in range(program.steps_done, recipe.steps):
        batch = corpus.batch(step, tokens=recipe.tokens, seed=recipe.seed)
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate_at(step)
        if step + 1 < recipe.steps:
            program.ahead([len(one) for one in corpus.batch(step + 1, tokens=recipe.tokens, seed=recipe.seed)])
        started = time.perf_counter()
        loss = program.step(batch)
        norm = program.clip_grad_norm_(recipe.clip)
        optimizer.step()
        optimizer.zero_grad()
        # The norm was read back from the device, so only the optimizer's own kernels may still run.
        _finish(program.ranks.device)
        seconds = time.perf_counter() - started
        row = Row(step, loss, norm, sum(map(len, batch)), seconds, predicted, _compiled(), _peak(program.ranks.device))
        if not math.isfinite(loss):
            raise RunError(
                f"the loss of step {step} is {loss}: lower the learning rate ({recipe.rate:g}) or warm up longer"
            )
        write(row)
        rows.append(row)
        if keep.due(step + 1, recipe.steps):
            program.save(str(keep.folder), optimizer)
    return tuple(rows)


@dataclass(frozen=True, slots=True)
class Summary:
    """A run in figures: loss of the first step and mean of the last ten, the median step after the first few."""

    steps: int
    first: float
    last: float
    seconds: float
    tokens_per_second: float
    predicted: float | None
    compiled: int
    peak: int


def summary(rows: Sequence[Row]) -> Summary:
    """What a run came to. The first steps warm caches, compile and connect, so times leave out up to five of them."""
    steady = rows[min(5, len(rows) // 2) :]
    seconds = median(row.seconds for row in steady)
    return Summary(
        steps=len(rows),
        first=rows[0].loss,
        last=mean(row.loss for row in rows[-10:]),
        seconds=seconds,
        tokens_per_second=sum(r.tokens for r in steady) / sum(r.seconds for r in steady),
        predicted=rows[0].predicted,
        compiled=rows[-1].compiled,
        peak=max(row.peak for row in rows),
    )


def trained_module(program: Program, model: nn.Module) -> nn.Module | None:
    """`model`, which held no weights, with the program's, on the host of rank 0; None elsewhere. A collective."""
    weights = program.full_state_dict()
    if program.ranks.rank != 0:
        return None
    plain = model.to_empty(device="cpu")
    plain.load_state_dict(weights, strict=False)
    kept = dict(plain.named_buffers())
    with torch.no_grad():
        # Buffers that no state_dict holds, such as a table of angles, are the program's too.
        for name, buffer in program.root.named_buffers():
            kept[name].copy_(buffer)
    return plain


@torch.no_grad()
def sample(model: nn.Module, prompt: str, *, length: int, window: int, temperature: float = 0.7, seed: int = 0) -> str:
    """The prompt continued by `length` bytes, one at a time, each drawn given at most `window` bytes before it."""
    generator = torch.Generator().manual_seed(seed)
    tokens = list(prompt.encode())
    model.eval()
    for _ in range(length):
        logits_V = model(torch.tensor([tokens[-window:]]))[0, -1, :SYMBOLS].float()
        chances_V = torch.softmax(logits_V / temperature, dim=-1)
        tokens.append(int(torch.multinomial(chances_V, 1, generator=generator)))
    return bytes(tokens).decode("utf-8", errors="replace")


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def _compiled() -> int:
    """Graphs that Dynamo has compiled in this process; asking must not load it."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    return int(dynamo.counters["stats"].get("unique_graphs", 0)) if dynamo else 0
