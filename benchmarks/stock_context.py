"""The comparison at long sequences: the same Llama in plain PyTorch, its sequence cut by torch's context_parallel.

FSDP2 over the same ranks, bf16 over fp32 masters, load-balanced ring attention with the chosen SDPA kernel, a loss
replayed chunk by chunk, fused AdamW. Key/value heads go as they are (native grouped queries) or repeated. A block is
compiled as one ("block"), in the pieces before and after attention, which then runs eagerly ("pieces"), or "eager".
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import stock
import torch
import torch.distributed as dist
import torch.nn.functional as F
from measuring import Clock, Row, Shape, batches, finish, measured
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor.experimental import context_parallel
from torch.distributed.tensor.experimental._attention import set_rotate_method
from torch.nn.attention import sdpa_kernel
from torch.utils.checkpoint import checkpoint

from fourfold.compiler.models.llama import Block, rotary, rotate

ATTENTION = F.scaled_dot_product_attention
"""As it is outside of context_parallel, which in some versions leaves its own behind when a step fails."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One setting. rotate: "alltoall" or "allgather", how keys go round; "" cuts nothing: each rank runs all tokens."""

    attention: str
    compiled: str
    grouped: bool
    recompute: bool
    rotate: str

    def __str__(self) -> str:
        words = (self.attention, self.compiled, "gqa" if self.grouped else "repeat")
        return ", ".join(("cp", *words, "recompute" if self.recompute else "keep", self.rotate or "whole"))


FIRST = Variant("cudnn", "block", grouped=True, recompute=False, rotate="alltoall")
FORMS = (
    FIRST,
    replace(FIRST, compiled="pieces"),
    replace(FIRST, rotate="allgather"),
    replace(FIRST, compiled="pieces", grouped=False),
    replace(FIRST, compiled="pieces", rotate="allgather", recompute=True),
    replace(FIRST, attention="flash", compiled="pieces"),
    replace(FIRST, grouped=False, rotate="allgather"),
    replace(FIRST, recompute=True),
    replace(FIRST, compiled="eager", recompute=True),
    replace(FIRST, attention="flash", rotate="allgather"),
    replace(FIRST, attention="flash", compiled="pieces", grouped=False, recompute=True, rotate="allgather"),
    replace(FIRST, compiled="eager"),
)
"""Best guesses first; the one that keeps most last."""


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

    def __init__(self, shape: Shape, variant: Variant) -> None:
        self.shape, self.variant = shape, variant
        self.mesh = init_device_mesh(shape.device.type, (dist.get_world_size(),), mesh_dim_names=("cp",))
        F.scaled_dot_product_attention = ATTENTION
        if variant.rotate:
            set_rotate_method(variant.rotate)
        with torch.device("meta"):
            model: Any = ContextModel(shape.config)
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
            block.forward = _forward(block, variant)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=shape.real)

    def step(self, batch: Tensor, clock: Clock) -> Tensor:
        """One step over the global batch, the same on every rank. Returns the loss of this rank's tokens."""
        loss = self._backward(batch, clock)
        clock.mark("optimizer")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss

    def gradients(self, batch: Tensor) -> tuple[float, float]:
        """The loss of the global batch and the norm of its gradients, which stay in the parameters."""
        loss = self._backward(batch, Clock(self.shape.device))
        dist.all_reduce(loss)
        norm: Any = nn.utils.clip_grad_norm_(self.model.parameters(), 1e9)
        return float(loss) / dist.get_world_size(), float(norm.full_tensor())

    def close(self) -> None:
        """Waits for the device, and undoes what a failed step may have left."""
        F.scaled_dot_product_attention = ATTENTION
        finish(self.shape.device)

    def _backward(self, batch: Tensor, clock: Clock) -> Tensor:
        device, length = self.shape.device, batch.shape[1] - 1
        tokens, targets = batch[:, :-1].to(device), batch[:, 1:].to(device)
        cos, sin = rotary(torch.arange(length, device=device), self.shape.config)
        cut: AbstractContextManager[None] = nullcontext()
        if self.variant.rotate:
            buffers = [tokens, targets, cos, sin]
            cut = context_parallel(
                self.mesh, buffers=buffers, buffer_seq_dims=[1, 1, 0, 0], no_restore_buffers=set(buffers)
            )
        with sdpa_kernel(stock.BACKENDS[self.variant.attention]), cut:
            loss = self.model(tokens, targets, cos, sin)
            clock.mark("backward")
            loss.backward()
        found: Tensor = loss.detach()
        return found


def run(program: ContextProgram, name: str) -> Row:
    """The variant's row, with the graphs that were compiled and the breaks between them. Raises what torch raises."""
    found, shape = batches(program.shape, 1), program.shape
    counters = torch._dynamo.utils.counters
    counters.clear()
    row = Row("stock", name, shape.length, dist.get_world_size())
    row = measured(row, lambda number, clock: program.step(found[number], clock), shape)
    compiled = {
        "graphs": counters["stats"]["unique_graphs"],
        "breaks": {str(reason)[:200]: count for reason, count in counters["graph_break"].items()},
    }
    return replace(row, settings=asdict(program.variant) | compiled)


def _forward(block: Block, variant: Variant) -> Callable[..., Tensor]:
    before, after = _pieces(block, grouped=variant.grouped)
    if variant.compiled == "pieces":
        before, after = torch.compile(before, dynamic=False), torch.compile(after, dynamic=False)

    def plain(x_BSD: Tensor, cos_SE: Tensor, sin_SE: Tensor) -> Tensor:
        q_BHSE, k_BGSE, v_BGSE = before(x_BSD, cos_SE, sin_SE)
        out_BHSE = F.scaled_dot_product_attention(q_BHSE, k_BGSE, v_BGSE, is_causal=True, enable_gqa=variant.grouped)
        return after(x_BSD, out_BHSE)

    def replayed(x_BSD: Tensor, cos_SE: Tensor, sin_SE: Tensor) -> Tensor:
        found: Tensor = checkpoint(plain, x_BSD, cos_SE, sin_SE, use_reentrant=False, preserve_rng_state=False)
        return found

    chosen = replayed if variant.recompute else plain
    if variant.compiled != "block":
        return chosen
    fast: Callable[..., Tensor] = torch.compile(chosen, dynamic=False)
    return fast


def _pieces(block: Block, *, grouped: bool) -> tuple[Callable[..., Any], Callable[..., Tensor]]:
    """What a block does before attention and after it; without `grouped` each query head gets its key/value head."""
    attention = block.attention

    def before(x_BSD: Tensor, cos_SE: Tensor, sin_SE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y_BSD = block.attention_norm(x_BSD)
        q, k, v = (p(y_BSD).unflatten(-1, (-1, attention.head_width)) for p in (attention.q, attention.k, attention.v))
        q, k = (rotate(x, cos_SE, sin_SE).transpose(1, 2) for x in (q, k))
        v = v.transpose(1, 2)
        group = 1 if grouped else q.shape[1] // k.shape[1]
        return (q, k, v) if group == 1 else (q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1))

    def after(x_BSD: Tensor, out_BHSE: Tensor) -> Tensor:
        x_BSD = x_BSD + attention.out(out_BHSE.transpose(1, 2).flatten(-2))
        found: Tensor = x_BSD + block.feed_forward(block.feed_forward_norm(x_BSD))
        return found

    return before, after
