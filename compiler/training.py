"""Trains a Program on a corpus: warm-up, decay, clipping, a row of figures a step; whole weights and samples after."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median

import torch
from torch import Tensor, nn

from fourfold.backends.program import Program
from fourfold.compiler.corpus import SYMBOLS, Corpus
from fourfold.hardware.errors import ModelError, RunError


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


def train(
    program: Program,
    corpus: Corpus,
    recipe: Recipe,
    *,
    predicted: float | None = None,
    write: Callable[[Row], None] = lambda row: None,
) -> tuple[Row, ...]:
    """Trains the initialised program; `write` is told each step. Raises RunError when the loss is no number."""
    optimizer = torch.optim.AdamW(
        list(program.parameters()), lr=recipe.rate, betas=recipe.betas, weight_decay=recipe.decay
    )
    rows = []
    for step in range(recipe.steps):
        batch = corpus.batch(step, tokens=recipe.tokens, seed=recipe.seed)
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate_at(step)
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


def whole_weights(program: Program) -> dict[str, Tensor]:
    """Every parameter whole and on the host, under the model's own names. All ranks must call it together."""
    found: dict[str, Tensor] = {}
    parts: dict[str, list[tuple[int, int, Tensor]]] = {}
    for name, parameter in program.named_parameters():
        gather = getattr(parameter, "full_tensor", None)
        value = (gather() if gather is not None else parameter).detach().cpu()
        part = program.graph.parts.get(name)
        if part is None:
            found[name] = value
        else:
            parts.setdefault(part.of, []).append((part.start, part.dim, value))
    for name, pieces in parts.items():
        ordered = sorted(pieces, key=lambda piece: piece[0])
        found[name] = torch.cat([value for _, _, value in ordered], ordered[0][1])
    return found


def fill_plain(model: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """The plain module with these weights, tied names too. Raises ModelError for weights of another model."""
    answer = model.load_state_dict(dict(weights), strict=False)
    owned = {id(p): name for name, p in model.named_parameters()}
    aliases = {name for name, p in model.named_parameters(remove_duplicate=False) if owned[id(p)] != name}
    buffers = {name for name, _ in model.named_buffers()}
    wrong = [*answer.unexpected_keys, *(set(answer.missing_keys) - aliases - buffers)]
    if wrong:
        raise ModelError(f"these weights are of another model: {', '.join(sorted(wrong)[:4])}")
    return model


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
    """Graphs that Dynamo has compiled in this process."""
    counters = torch._dynamo.utils.counters
    return int(counters["stats"].get("unique_graphs", 0))
