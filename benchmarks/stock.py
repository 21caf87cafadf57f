"""The comparison: the same Llama in plain PyTorch, as fast as its own parts make it.

FSDP2 with bf16 computation over fp32 masters, torch.compile a block, SDPA by a chosen backend, checkpoints inside the
compiled block (so that its partitioner drops what a replay does not need), fused AdamW. The head and the loss are
compiled together, so no float logits are stored; "chunked" replays them piece by piece where memory is short.
B sequences, S tokens of one, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from measuring import Clock, Row, Shape, batches, forget, measured
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from fourfold.compiler.models.llama import Block, Llama, LlamaConfig, rotary

CHUNK = 2048
BACKENDS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}


@dataclass(frozen=True, slots=True)
class Variant:
    """One setting of the stock program. `micro_batch` sequences a rank; `loss` is "whole" or "chunked"."""

    micro_batch: int
    recompute: bool
    reshard: bool
    attention: str = "cudnn"
    loss: str = "whole"

    def __str__(self) -> str:
        words = (
            f"mb {self.micro_batch}",
            "recompute" if self.recompute else "keep",
            "reshard" if self.reshard else "hold",
        )
        return ", ".join((*words, self.attention, *(("chunked loss",) if self.loss == "chunked" else ())))


class Head(nn.Linear):
    """The language model's head with its loss: called once, so that its weight is gathered once."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config.width, config.vocabulary, bias=False)
        self.chunk = 0
        self.of_logits: Callable[[Tensor, Tensor, Tensor], Tensor] = head_loss

    def forward(self, x_BSD: Tensor, targets_BS: Tensor) -> Tensor:  # type: ignore[override]
        x_TD, targets_T = x_BSD.flatten(0, 1), targets_BS.flatten()
        if not self.chunk:
            return self.of_logits(x_TD, self.weight, targets_T) / len(targets_T)
        total = x_TD.new_zeros((), dtype=torch.float32)
        for start in range(0, len(targets_T), self.chunk):
            x, targets = (part[start : start + self.chunk] for part in (x_TD, targets_T))
            total = total + checkpoint(self.of_logits, x, self.weight, targets, use_reentrant=False)
        return total / len(targets_T)


def head_loss(x_TD: Tensor, weight_VD: Tensor, targets_T: Tensor) -> Tensor:
    """The summed cross-entropy, of float logits."""
    return F.cross_entropy(F.linear(x_TD, weight_VD).float(), targets_T, reduction="sum")


class Stock(Llama):
    """Llama from tokens and targets to the mean loss."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.head = Head(config)

    def forward(self, tokens_BS: Tensor, targets_BS: Tensor) -> Tensor:  # type: ignore[override]
        x_BSD = self.embedding(tokens_BS)
        cos_SE, sin_SE = rotary(torch.arange(tokens_BS.shape[1], device=tokens_BS.device), self.config)
        for layer in self.layers:
            x_BSD = layer(x_BSD, cos_SE, sin_SE)
        loss: Tensor = self.head(self.norm(x_BSD), targets_BS)
        return loss


class StockProgram:
    """One sharded model and its optimizer, which all variants share: they differ in how a step is run."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        with torch.device("meta"):
            model: Any = self.model_of(shape)
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if shape.real else MixedPrecisionPolicy()
        for unit in (model.embedding, *model.layers):
            fully_shard(unit, mp_policy=policy)
        # The backward begins with these: to gather them again at once would gain nothing.
        fully_shard([model.norm, model.head], mp_policy=policy, reshard_after_forward=False)
        self.model: Any = fully_shard(model, mp_policy=policy)
        model.to_empty(device=shape.device)
        _initialise(model, dist.get_rank())
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=shape.real)

    def model_of(self, shape: Shape) -> nn.Module:
        """On the meta device."""
        return Stock(shape.config)

    def set(self, variant: Variant) -> None:
        """Makes the following steps run as the variant says."""
        for block in self.model.layers:
            block.forward = _forward(block, recompute=variant.recompute, compiled=self.shape.real)
            block.set_reshard_after_forward(variant.reshard)
        self.model.embedding.set_reshard_after_forward(variant.reshard)
        self.model.head.chunk = CHUNK if variant.loss == "chunked" else 0
        if self.shape.real:
            self.model.head.of_logits = torch.compile(head_loss, dynamic=False)

    def step(self, mine: Tensor, clock: Clock) -> Tensor:
        """One step over this rank's share of the global batch; nothing in it waits for the device."""
        tokens = mine.to(self.shape.device, non_blocking=True)
        loss = self.model(tokens[:, :-1], tokens[:, 1:])
        clock.mark("backward")
        loss.backward()
        clock.mark("optimizer")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        found: Tensor = loss.detach()
        return found


def run(program: StockProgram, variant: Variant) -> Row:
    """The variant's row. Raises what torch raises, out of memory among it; then the program is not to be used again."""
    shape, size = program.shape, dist.get_world_size()
    forget(shape.device)
    program.set(variant)
    settings: dict[str, Any] = {
        "micro_batch": variant.micro_batch,
        "recompute": variant.recompute,
        "reshard": variant.reshard,
    }
    settings |= {"attention": variant.attention, "loss": variant.loss}
    tokens = variant.micro_batch * size * shape.length
    row = Row("stock", str(variant), tokens, size, settings=settings)
    mine = [batch[dist.get_rank() :: size].contiguous() for batch in batches(shape, variant.micro_batch * size)]
    pinned = [batch.pin_memory() for batch in mine] if shape.real else mine
    with _attention(variant.attention, real=shape.real):
        return measured(row, lambda number, clock: program.step(pinned[number], clock), shape)


@contextmanager
def _attention(name: str, *, real: bool) -> Iterator[None]:
    context: AbstractContextManager[Any] = sdpa_kernel(BACKENDS[name]) if real else nullcontext()
    with context:
        yield


def _forward(block: nn.Module, *, recompute: bool, compiled: bool) -> Callable[..., Tensor]:
    """The block's forward, replayed in backward if asked, compiled with that inside."""

    def plain(x_BSD: Tensor, cos_SE: Tensor, sin_SE: Tensor) -> Tensor:
        out_BSD: Tensor = Block.forward(block, x_BSD, cos_SE, sin_SE)  # type: ignore[arg-type]
        return out_BSD

    def replayed(x_BSD: Tensor, cos_SE: Tensor, sin_SE: Tensor) -> Tensor:
        found: Tensor = checkpoint(plain, x_BSD, cos_SE, sin_SE, use_reentrant=False, preserve_rng_state=False)
        return found

    chosen = replayed if recompute else plain
    if not compiled:
        return chosen
    fast: Callable[..., Tensor] = torch.compile(chosen, fullgraph=True, dynamic=False)
    return fast


@torch.no_grad()
def _initialise(model: nn.Module, rank: int) -> None:
    generator = torch.Generator(next(model.parameters()).device).manual_seed(rank)
    for parameter in model.parameters():
        local = parameter.to_local()  # type: ignore[attr-defined]
        if parameter.dim() > 1:
            local.normal_(std=0.02, generator=generator)
        else:
            local.fill_(1.0)
