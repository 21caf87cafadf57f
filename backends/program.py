"""A plan that runs: parameters in shards, one step over a global batch, the same on every rank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.optim import Optimizer

from fourfold.backends import batching, checkpoint, compat, skeleton, weights
from fourfold.backends.agreement import agreed
from fourfold.backends.aside import Aside
from fourfold.backends.batching import Packed, Portion
from fourfold.backends.checkpoint import Contents
from fourfold.backends.checkpoint_index import SCHEMA, Index, Position, computation, version
from fourfold.backends.clip import clip_grad_norm_
from fourfold.backends.engine import Engine
from fourfold.backends.initial import Initialised
from fourfold.backends.kernels.user_loss import Loss
from fourfold.backends.random import seeded
from fourfold.backends.ranks import TIMEOUT, Ranks, join, same, together
from fourfold.backends.sequences import Document, limits_of
from fourfold.hardware.errors import UsageError
from fourfold.ir.graph import Graph
from fourfold.ir.plan import Plan


@dataclass(frozen=True, slots=True)
class Options:
    """How to run, beside the plan.

    compile: whether regions are compiled (None: on a GPU). timeout: seconds a collective waits for the slowest rank.
    loss: in place of cross-entropy, `loss(logits [C, V], labels [C]) -> (sum, count)` of a chunk of tokens, labels
    already shifted and -100 where there is none; a step's loss is the sum over the batch divided by the count, which
    must depend on the labels alone.
    """

    compile: bool | None = None
    device: torch.device | None = None
    timeout: float = TIMEOUT
    loss: Loss | None = None


class Program:
    """The compiled training program of one rank. Made by `fourfold.compile`; needs torchrun for more than one rank."""

    def __init__(self, model: nn.Module, plan: Plan, graph: Graph, options: Options) -> None:
        self.plan, self.model = plan, model
        self.ranks: Ranks = join(plan.mesh, shard=plan.zero > 0, device=options.device, timeout=options.timeout)
        compiled = self.ranks.device.type == "cuda" if options.compile is None else options.compile
        self.engine = Engine(plan, graph, self.ranks, compiled=compiled, loss=options.loss)
        self.aside = Aside.of(self.ranks.device)
        self.graph = graph
        self.root = self._sharded(graph)
        self.limits = limits_of(graph)
        self.tokens_seen = 0
        self.sequences_seen = 0
        self.steps_done = 0
        self.seed = 0
        self.filled = False

    def parameters(self) -> Iterator[nn.Parameter]:
        """Every parameter once, as DTensors: what an optimizer takes."""
        return (p for p in self.root.parameters() if p.requires_grad)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """With their full names; fused weights as their parts."""
        yield from self.root.named_parameters()

    def init(self, seed: int = 0) -> None:
        """Initialises every parameter with the model's own initialisers: same seed, same weights under every plan.

        A tensor that no initialiser writes keeps the value it has in the model, which must be the same on every rank.
        Raises ModelError listing the tensors that have none either, RunError naming one that differs between ranks.
        """
        with together():
            source = Initialised(self.model, seed, self.ranks.device)
            unset = self._fill(source)
            weights.require_all(unset, f"{type(self.model).__name__}'s own initialisation")
        same(weights.checksums(source.kept), "what no initialiser writes must be built alike on every rank")
        self.seed, self.filled = seed, True

    def copy_from(self, model: nn.Module) -> None:
        """Takes the weights of a plain module with the same parameters, whole and the same on every rank."""
        source = weights.held(model)
        with together():
            weights.require_all(self._fill(source.get), f"this {type(model).__name__}")
        same(weights.checksums(source), "the model must hold the same weights on every rank")
        self.filled = True

    def full_state_dict(self, *, everywhere: bool = False) -> dict[str, Tensor]:
        """The weights as the plain model's state_dict, whole, on the CPU; empty beyond rank 0 unless `everywhere`.

        Fused weights are joined and tied ones stand under all their names. What forward never reads is as the model
        holds it, or left out where the model is on the meta device. A collective: call it on every rank.
        """
        return weights.plain(self.root, self.graph, self.model, self._whole, keep=everywhere or self.ranks.rank == 0)

    def save(self, folder: str | Path, optimizer: Optimizer | None = None, **stateful: Any) -> None:
        """Writes a checkpoint that any plan of this model can load; what was in `folder` goes once the new one stands.

        stateful: anything with state_dict() and load_state_dict() (a sampler, a schedule, another optimizer), by names
        to load it under. A collective. Raises RunError on every rank when it cannot be written.
        """
        self._require_weights()
        with together():
            contents = Contents.of(self.root, optimizer, stateful)
        index = Index(
            data="",
            model=self.graph.name,
            fingerprint=self.graph.fingerprint,
            computation=computation(self.graph),
            plan=f"{self.plan.mesh}, ZeRO {self.plan.zero}, {self.plan.precision}",
            ranks=self.ranks.world,
            position=Position(self.steps_done, self.sequences_seen, self.tokens_seen, self.seed),
            versions={"fourfold": version(), "torch": torch.__version__},
            optimizers={name: type(o).__name__ for name, o in contents.optimizers.items()},
            stateful=tuple(contents.stateful),
            tensors=contents.shapes(),
            schema=SCHEMA,
        )
        checkpoint.save(Path(folder), contents, index, self.ranks)

    def load(self, folder: str | Path, optimizer: Optimizer | None = None, **stateful: Any) -> None:
        """Reads what `save` wrote, under this or another plan: weights, optimizer, position, random generators.

        Without `optimizer`, or a name in `stateful`, its state is passed over. A collective. Raises RunError on every
        rank for a missing or damaged checkpoint and for one of another model (see checkpoint.load).
        """
        with together():
            contents = Contents.of(self.root, optimizer, stateful)
        position = checkpoint.load(Path(folder), contents, self.ranks, computes=computation(self.graph))
        self.filled = True
        self.steps_done, self.sequences_seen = position.steps, position.sequences
        self.tokens_seen, self.seed = position.tokens, position.seed

    def step(self, batch: Sequence[Any]) -> float:
        """Forward and backward over the GLOBAL batch; gradients are left in the parameters.

        batch: sequences of any lengths, the same list on every rank (see sequences.documents). Returns the loss: summed
        over supervised targets, divided by their weight in the whole batch. Raises UsageError for an empty batch or a
        sequence too long, RunError when ranks pass different batches.
        """
        loss = self._run(batch, backward=True)
        self.steps_done += 1
        return loss

    @torch.no_grad()
    def evaluate(self, batch: Sequence[Any]) -> float:
        """The loss of the global batch without gradients or dropout."""
        loss = self._run(batch, backward=False)
        # Only a backward shards again below ZeRO 3; else the next step would read the weights of this one.
        for module in self.root.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        return loss

    def clip_grad_norm_(self, limit: float) -> float:
        """Scales all gradients so that their global norm is at most `limit`; returns the norm before, on every rank."""
        return clip_grad_norm_(self.parameters(), limit)

    def _run(self, batch: Sequence[Any], *, backward: bool) -> float:
        self._require_weights()
        docs = agreed(batch, self.limits, self.aside)
        mine = batching.portions(docs, self.plan, self.ranks.pool_rank)
        total = self._divisor(docs, mine)
        loss = joined = torch.zeros((), dtype=torch.float64, device=self.ranks.device)
        for k, portion in enumerate(mine):
            last = k == len(mine) - 1
            self._schedule(last=last)
            with self._drawing(k):
                part = self.engine.loss(
                    self.root,
                    self._packed(portion),
                    scale=1.0 / total if total else 0.0,
                    training=backward,
                    shards=portion.shards,
                )
            loss += part.detach()
            # The loss is known before the last backward, and reading it must not wait for that.
            joined = self.aside.sum(loss) if last else joined
            if backward:
                part.backward()  # type: ignore[no-untyped-call]
        self.tokens_seen += sum(len(d) for d in docs) if backward else 0
        self.sequences_seen += len(docs) if backward else 0
        shared = 1 if self.engine.loss_is_partial else self.ranks.tensor.size
        return self.aside.read(joined) / shared

    def _packed(self, portion: Portion) -> Packed:
        return portion.packed(bucket=self.plan.bucket, device=self.ranks.device)

    def _divisor(self, docs: Sequence[Document], mine: Sequence[Portion]) -> float:
        """What the summed loss of the whole batch is divided by; known before the first backward."""
        if self.engine.user_loss is None:
            return float(sum(float(d.weights.double().sum()) for d in docs))
        counts = [self.engine.counted(self._packed(portion)) for portion in mine]
        return self.aside.read(self.aside.sum(torch.stack(counts).sum())) / self.ranks.tensor.size

    def _drawing(self, micro_step: int) -> AbstractContextManager[object]:
        """Where dropout draws numbers of its own on every rank, the same when the step is run again after a load."""
        if not self.engine.draws:
            return nullcontext()
        return seeded(self.ranks.device, self.seed, self.steps_done, micro_step, self.ranks.rank)

    def _schedule(self, *, last: bool) -> None:
        """Which micro-step gathers parameters anew and which reduces gradients: the ZeRO stage."""
        zero = self.plan.zero
        self.root.set_requires_gradient_sync(last or zero >= 2)
        self.root.set_is_last_backward(last)
        if zero < 3:
            self.root.set_reshard_after_backward(last)

    def _require_weights(self) -> None:
        if not self.filled:
            raise UsageError("the weights are not set yet: call init(seed), load(folder) or copy_from(model) first")

    def _fill(self, source: weights.Lookup) -> tuple[str, ...]:
        place = weights.tensor_part(self._cuts(), self.ranks.tensor.rank, self.ranks.tensor.size)
        return weights.fill(self.root, self.graph, source, place)

    def _whole(self, name: str, target: Tensor) -> Tensor:
        return weights.whole(target, self._cuts().get(name), self.ranks.tp)

    def _cuts(self) -> dict[str, Shard | Replicate]:
        return {n: Shard(s.dim) if s.kind == "S" else Replicate() for n, s in self.engine.stored.items()}

    def _sharded(self, graph: Graph) -> Any:
        """The skeleton with its parameters sharded over the pool, materialised on the device, not yet filled."""
        precision = self.plan.precision
        names = (precision.parameter, precision.compute, precision.reduce)
        parameter, compute, reduce = (getattr(torch, name) for name in names)
        root = skeleton.build(graph, self.engine.stored, (parameter, compute), self.ranks.tp)
        policy = MixedPrecisionPolicy(
            param_dtype=compute if compute != parameter else None,
            reduce_dtype=reduce if reduce != compute else None,
            cast_forward_inputs=False,
        )
        keep: dict[str, Any] = {"mesh": self.ranks.data, "mp_policy": policy}
        self.engine.place(root)
        # The head and the block before it are what the backward needs first: gathered again, nothing would hide it.
        anew = dict.fromkeys((*self.engine.units,)[:-2], self.plan.zero == 3)
        for index, containers in self.engine.units.items():
            unit: Any = list(containers) if len(containers) > 1 else containers[0]
            fully_shard(unit, reshard_after_forward=anew.get(index, False), **keep)
        fully_shard(root, reshard_after_forward=False, **keep)
        for module in root.modules():
            if isinstance(module, FSDPModule):
                compat.sum_gradients(module)
        return root.to_empty(device=self.ranks.device)
