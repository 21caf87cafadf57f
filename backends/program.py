"""A plan that runs: parameters in shards, one step over a global batch, the same on every rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import Replicate, Shard
from torch.optim import Optimizer

from fourfold.backends.attention.teams import queues
from fourfold.backends.batch import batching
from fourfold.backends.batch.batching import Portion
from fourfold.backends.batch.given import given
from fourfold.backends.batch.placing import Turn, turns
from fourfold.backends.batch.sequences import limits_of
from fourfold.backends.checkpoint import checkpoint
from fourfold.backends.checkpoint.checkpoint import Contents
from fourfold.backends.checkpoint.checkpoint_index import SCHEMA, Index, Position, computation, version
from fourfold.backends.communication.aside import Aside
from fourfold.backends.communication.lost import reachable
from fourfold.backends.communication.ranks import TIMEOUT, Ranks, join, same, together
from fourfold.backends.kernels.user_loss import Loss
from fourfold.backends.stage.engine import Engine
from fourfold.backends.stage.sharding import Sharding
from fourfold.backends.stage.tied import Tied
from fourfold.backends.step.clip import clip_grad_norm_
from fourfold.backends.step.step import Step
from fourfold.backends.weights import pretrained, pretrained_save, weights
from fourfold.backends.weights.initial import Initialised
from fourfold.hardware.errors import UsageError
from fourfold.ir.batch import BatchPlan
from fourfold.ir.graph import Graph
from fourfold.ir.plan import Plan
from fourfold.ir.schedule import Schedule, in_turn


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


Schedules = Callable[[int], Schedule]
"""The schedule of a step of so many micro-steps."""


class Placement(Protocol):
    """Who places each batch on the pool and orders what a rank runs of it; made by the compiler, for `Program`."""

    def ahead(self, lengths: Sequence[int]) -> None:
        """A hint of a batch to come."""
        ...

    def learn(self, rank: int, seconds: float, tokens: int) -> None:
        """Takes note of what the same work took a rank of the pool: a collective."""
        ...

    def place(self, lengths: Sequence[int], step: int | None = None) -> BatchPlan:
        """The placement of sequences of these lengths in this step, the same on every rank: a collective."""
        ...

    def schedule(self, batch: BatchPlan, rank: int) -> Schedule:
        """In which order a rank of the pool runs its turns."""
        ...


class Program:
    """The compiled training program of one rank. Made by `fourfold.compile`; needs torchrun for more than one rank.

    `schedule` gives the order in which a pipeline runs its micro-steps; without stages they run one after the other.
    `placement` places each batch anew; without it sequences are dealt to fixed groups of ranks.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        graph: Graph,
        options: Options,
        schedule: Schedules = in_turn,
        placement: Placement | None = None,
    ) -> None:
        self.plan, self.model, self.schedule, self.timeout = plan, model, schedule, options.timeout
        self.placement = placement
        many = queues(plan, placed=placement is not None)
        keep: dict[str, Any] = {"device": options.device, "timeout": options.timeout}
        self.ranks: Ranks = join(plan.mesh, shard=plan.zero > 0, queues=many, **keep)
        compiled = self.ranks.device.type == "cuda" if options.compile is None else options.compile
        how: dict[str, Any] = {"compiled": compiled, "loss": options.loss, "paced": placement is not None}
        self.engine = Engine(plan, graph, self.ranks, **how)
        self.aside = Aside.of(self.ranks.device)
        self.graph = graph
        self.sharding = Sharding(self.engine)
        self.root = self.sharding.root
        self.tied = Tied(self.engine, self.root)
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
        wire = self.ranks.wire
        return weights.plain(self.root, self.graph, self.model, self._whole, wire=wire, everywhere=everywhere)

    def save(self, folder: str | Path, optimizer: Optimizer | None = None, **stateful: Any) -> None:
        """Writes a checkpoint that any plan of this model can load; what was in `folder` goes once the new one stands.

        stateful: anything with state_dict() and load_state_dict() (a sampler, a schedule, another optimizer), by names
        to load it under. A collective. Raises RunError on every rank when it cannot be written.
        """
        self._require_weights()
        with together():
            contents = Contents.of(self.root, optimizer, stateful, self.tied.copies)
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
            tensors=contents.shapes(self.ranks),
            schema=SCHEMA,
        )
        checkpoint.save(Path(folder), contents, index, self.ranks)

    def load(self, folder: str | Path, optimizer: Optimizer | None = None, **stateful: Any) -> None:
        """Reads what `save` wrote, under this or another plan: weights, optimizer, position, random generators.

        Without `optimizer`, or a name in `stateful`, its state is passed over. A collective. Raises RunError on every
        rank for a missing or damaged checkpoint and for one of another model (see checkpoint.load).
        """
        with together():
            contents = Contents.of(self.root, optimizer, stateful, self.tied.copies)
        position = checkpoint.load(Path(folder), contents, self.ranks, computes=computation(self.graph))
        self.filled = True
        self.steps_done, self.sequences_seen = position.steps, position.sequences
        self.tokens_seen, self.seed = position.tokens, position.seed

    def load_pretrained(self, folder: str | Path) -> None:
        """Takes the weights in a folder of Hugging Face (safetensors, in one file or several); the rest stays.

        Every rank reads its own parts alone. Raises RunError on every rank when a tensor is missing, shaped otherwise,
        quantised or not of this model, before any is read; UsageError without the extra `hf`.
        """
        with together():
            kept = pretrained.fill(Path(folder), self.root, self.graph, self.model, cuts=self._cuts(), ranks=self.ranks)
        same(weights.checksums(kept), "what no initialiser writes must be built alike on every rank")
        self.filled = True

    def save_pretrained(
        self, folder: str | Path, *, dtype: torch.dtype | None = None, file_bytes: float = pretrained_save.FILE_BYTES
    ) -> None:
        """Writes config.json and safetensors that transformers' from_pretrained opens, from rank 0; a collective.

        dtype: of the weights written (None: as they are held); file_bytes: the most one file holds. Raises UsageError
        on every rank for a model that has no config, RunError when a file cannot be written.
        """
        self._require_weights()
        form = pretrained_save.Form(dtype, file_bytes)
        pretrained_save.save(Path(folder), self.root, self.graph, self.model, gather=self._whole, form=form)

    def step(self, batch: Sequence[Any]) -> float:
        """Forward and backward over the GLOBAL batch; gradients are left in the parameters.

        batch: sequences of any lengths, the same list on every rank (see sequences.documents), or a source of which
        each rank reads its part (see lazy.Source). Returns the loss: summed over supervised targets, divided by their
        weight in the whole batch. Raises UsageError for an empty batch or a sequence too long, RunError when ranks
        pass different batches; with a placement, InfeasibleError for a sequence that it has no room for.
        """
        with reachable(f"step {self.steps_done + 1}", self.timeout):
            loss = self._run(batch, backward=True)
        self.steps_done += 1
        return loss

    def ahead(self, lengths: Sequence[int]) -> None:
        """A hint of the lengths of a batch to come, so that it can be placed while others train. No collective."""
        if self.placement is not None:
            self.placement.ahead(lengths)

    @torch.no_grad()
    def evaluate(self, batch: Sequence[Any]) -> float:
        """The loss of the global batch without gradients or dropout."""
        with reachable("evaluation", self.timeout):
            loss = self._run(batch, backward=False)
        self.sharding.reshard()
        return loss

    def clip_grad_norm_(self, limit: float) -> float:
        """Scales all gradients so that their global norm is at most `limit`; returns the norm before, on every rank."""
        return clip_grad_norm_(self.parameters(), limit, copies=self.tied.copies, device=self.ranks.device)

    def _run(self, batch: Sequence[Any], *, backward: bool) -> float:
        self._require_weights()
        found = given(batch, self.limits, self.aside)
        own, schedule = self._turns(found.lengths)
        documents = found.documents(own)
        mine = tuple(Portion(documents, turn) for turn in own)
        total = found.weight if self.engine.user_loss is None else self._counted(mine)
        place = (self.seed, self.steps_done)
        scale = 1.0 / total if total else 0.0
        apart = self.placement is not None and self.plan.zero < 2 and self.plan.mesh.pool > 1
        step = Step(self.engine, self.sharding, self.tied, self.aside, mine, scale, place, backward, apart)
        loss = step.run(schedule)
        self.tokens_seen += sum(found.lengths) if backward else 0
        self.sequences_seen += len(found.lengths) if backward else 0
        return loss / (1 if self.engine.loss_is_partial else self.ranks.tensor.size)

    def _turns(self, lengths: tuple[int, ...]) -> tuple[tuple[Turn, ...], Schedule]:
        """This rank's part of a batch, and the order in which it is run."""
        rank = self.ranks.pool_rank
        if self.placement is None:
            dealt = batching.dealt_turns(lengths, self.plan, rank)
            return dealt, self.schedule(len(dealt))
        self.placement.learn(rank, *self.engine.pace.taken())
        placed = self.placement.place(lengths, self.steps_done)
        return turns(placed, rank, every=self.plan.zero > 1), self.placement.schedule(placed, rank)

    def _counted(self, mine: Sequence[Portion]) -> float:
        """What the user's loss counts in the whole batch; known before the first backward."""
        bucket, device = self.plan.bucket, self.ranks.device
        counts = [self.engine.counted(portion.packed(bucket=bucket, device=device)) for portion in mine]
        shared = self.ranks.tensor.size * self.plan.mesh.pp
        return self.aside.read(self.aside.sum(torch.stack(counts).sum())) / shared

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
