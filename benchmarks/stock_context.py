"""The comparison at long sequences: the same Llama in plain PyTorch, its sequence cut by torch's context_parallel.

FSDP2 over the same ranks, bf16 over fp32 masters, load-balanced ring attention with the chosen SDPA kernel, a loss
replayed chunk by chunk, fused AdamW. Blocks are compiled, with graph breaks where torch needs them, or eager;
key/value heads go as they are (native grouped queries) or repeated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import Any

import stock
import torch
import torch.distributed as dist
import torch.nn.functional as F
from measuring import Clock, Row, Shape, batches, measured
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor.experimental import context_parallel
from torch.distributed.tensor.experimental._attention import set_rotate_method
from torch.nn.attention import sdpa_kernel
from torch.utils.checkpoint import checkpoint

from fourfold.compiler.models.llama import Attention, Block, LlamaConfig, rotary, rotate


@dataclass(frozen=True, slots=True)
class Variant:
    """One setting. rotate: "alltoall" or "allgather", how keys go round; grouped: key/value heads are not repeated."""

    attention: str
    compiled: bool
    grouped: bool
    recompute: bool
    rotate: str

    def __str__(self) -> str:
        words = ("compiled" if self.compiled else "eager", "gqa" if self.grouped else "repeat")
        return ", ".join(("cp", self.attention, *words, "recompute" if self.recompute else "keep", self.rotate))


class ContextModel(stock.Stock):
    """Llama whose rotary table is an argument: context_parallel cuts it beside the tokens."""

    def forward(self, tokens_BS: Tensor, targets_BS: Tensor, cos_SE: Tensor, sin_SE: Tensor) -> Tensor:  # type: ignore[override]
        x_BSD = self.embedding(tokens_BS)
        for layer in self.layers:
            x_BSD = layer(x_BSD, cos_SE, sin_SE)
        loss: Tensor = self.head(self.norm(x_BSD), targets_BS)
        return loss


class ContextProgram:
    """One sharded model under one variant."""

    def __init__(self, shape: Shape, config: LlamaConfig, variant: Variant) -> None:
        self.shape, self.config, self.variant = shape, config, variant
        self.mesh = init_device_mesh("cuda", (dist.get_world_size(),), mesh_dim_names=("cp",))
        set_rotate_method(variant.rotate)
        with torch.device("meta"):
            model = ContextModel(config)
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
        for unit in (model.embedding, *model.layers):
            fully_shard(unit, mp_policy=policy, mesh=self.mesh)
        fully_shard([model.norm, model.head], mp_policy=policy, reshard_after_forward=False, mesh=self.mesh)
        self.model: Any = fully_shard(model, mp_policy=policy, mesh=self.mesh)
        model.to_empty(device=shape.device)
        stock._initialise(model, dist.get_rank())
        model.head.chunk = stock.CHUNK
        model.head.of_logits = torch.compile(stock.head_loss, dynamic=False)
        for block in model.layers:
            if not variant.grouped:
                block.attention.forward = MethodType(_repeated, block.attention)
            block.forward = _forward(block, variant)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)

    def step(self, batch: Tensor, clock: Clock) -> Tensor:
        """One step over the global batch, the same on every rank."""
        device, length = self.shape.device, batch.shape[1] - 1
        tokens, targets = batch[:, :-1].to(device), batch[:, 1:].to(device)
        cos, sin = rotary(torch.arange(length, device=device), self.config)
        buffers = [tokens, targets, cos, sin]
        cut = context_parallel(
            self.mesh, buffers=buffers, buffer_seq_dims=[1, 1, 0, 0], no_restore_buffers=set(buffers)
        )
        with sdpa_kernel(stock.BACKENDS[self.variant.attention]), cut:
            loss = self.model(tokens, targets, cos, sin)
            clock.mark("backward")
            loss.backward()
        clock.mark("optimizer")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        found: Tensor = loss.detach()
        return found


def run(program: ContextProgram, shape: Shape, sequences: int) -> Row:
    """The variant's row. Raises what torch raises."""
    row = Row("stock", str(program.variant), sequences * shape.length, dist.get_world_size())
    found = batches(shape, sequences)
    return measured(row, lambda number, clock: program.step(found[number], clock), shape)


def _forward(block: nn.Module, variant: Variant) -> Callable[..., Tensor]:
    def plain(x_BSD: Tensor, cos_SE: Tensor, sin_SE: Tensor) -> Tensor:
        out_BSD: Tensor = Block.forward(block, x_BSD, cos_SE, sin_SE)  # type: ignore[arg-type]
        return out_BSD

    def replayed(x_BSD: Tensor, cos_SE: Tensor, sin_SE: Tensor) -> Tensor:
        found: Tensor = checkpoint(plain, x_BSD, cos_SE, sin_SE, use_reentrant=False, preserve_rng_state=False)
        return found

    chosen = replayed if variant.recompute else plain
    if not variant.compiled:
        return chosen
    fast: Callable[..., Tensor] = torch.compile(chosen, dynamic=False)
    return fast


def _repeated(self: Attention, x_BSD: Tensor, cos_SE: Tensor, sin_SE: Tensor) -> Tensor:
    """Attention with a key/value head for every query head."""
    q, k, v = (p(x_BSD).unflatten(-1, (-1, self.head_width)) for p in (self.q, self.k, self.v))
    q, k = (rotate(x, cos_SE, sin_SE).transpose(1, 2) for x in (q, k))
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, 1) for x in (k, v.transpose(1, 2)))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    found: Tensor = self.out(out.transpose(1, 2).flatten(-2))
    return found
