"""Megatron-LM of April 2021, priced: what its source did otherwise than Fourfold does (commit 2ff004ac).

No number here is fitted to a run: counts are counts of kernels and of messages in that source, seconds are those of the
machine's profile.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

from fourfold.costmodel.collective import collective_time
from fourfold.costmodel.kernel import matmul_time, norm_time, stream_time
from fourfold.ir.graph import Block, Node
from fourfold.ir.ops import op_of
from fourfold.ir.plan import SIZES
from fourfold.ir.rule import WHOLE
from fourfold.passes.price.pipelined import StageCost, stage_costs
from fourfold.passes.price.price import Priced, seconds_of
from fourfold.passes.price.seconds import Seconds, Times
from fourfold.passes.price.steps import StepTime
from fourfold.passes.price.work import ELEMENTWISE, BlockWork
from fourfold.passes.sequence.shared import RATES

LOGITS = (6.0, 4.0, 8.0, 8.0, 4.0, 8.0), (8.0, 6.0)
"""Bytes a logit of each kernel of the loss, forward and backward (gpt_model.py, mpu/cross_entropy.py): a cast to
float32, then in float32 the maximum, minus it, the exponential, the sum, over it; back times the gradient, cast."""

NORMS = (4.0, 4.0), (4.0, 6.0, 4.0, 6.0)
"""Bytes an element of a token's width of each kernel of a layer's two norms (fused_layer_norm.py, its .cu file): read
and written; back the gradients of weight and bias read input and gradient, that of the input writes too."""

WHOLE_WIDTH = (7.0, 7.0), (5.0, 2.0, 6.0, 5.0, 2.0, 6.0)
"""The same of kernels on the whole width, which every tensor rank runs (transformer.py): bias, dropout and residual in
one, with a mask of one byte; back through the mask, summed for the bias, added to the residual's gradient."""

OWN_WIDTH = (12.0, 4.0, 16.0), (12.0, 6.0, 24.0, 8.0)
"""The same on a tensor rank's part, in its share of the width: the bias of queries, keys and values (three widths;
torch of then added it to a product of three dimensions apart), attention's result made contiguous, bias and gelu in one
(four widths); back the three gradients joined and summed for the bias, gelu, summed for its bias."""


@dataclass(frozen=True)
class Megatron(Priced):
    """Messages between stages that both ends wait for (p2p_communication.py), gradients reduced after the last
    backward of all stages of a rank (model/distributed.py, training.py).

    A message is a tensor rank's part over the network, which the device is synchronised for, then an all-gather inside
    the node into a list of tensors: gathered in one buffer, copied out of it. Without a pipeline the launch scripts
    (run_table_1.sh) chose torch's DistributedDataParallel, which reduces beside the last backward as we do.
    """

    send = 0.0
    """A message is part of the stages at both of its ends."""

    @cached_property
    def stages(self) -> tuple[StageCost, ...]:
        """Each stage with its messages; the last of a rank to end reduces for all of them."""
        pp, silent = self.plan.mesh.pp, tuple(replace(call, reduce=0.0) for call in self.calls)
        plain = stage_costs(self.plan, silent, self.overlap)
        found = []
        for number, cost in enumerate(plain):
            reduced = self._reduced(number) if number < pp else 0.0
            forward, backward = self._messages(number, len(plain))
            found.append(
                replace(
                    cost,
                    forward=cost.forward + forward,
                    first=cost.first + forward,
                    backward=cost.backward + backward,
                    last=cost.last + backward + reduced,
                    exposed=reduced,
                )
            )
        return tuple(found)

    def _messages(self, number: int, stages: int) -> tuple[float, float]:
        """Seconds of what a stage sends and gets, forward and backward."""
        before, after = number > 0, number < stages - 1
        return before * self._got + after * self._sent, after * self._got + before * self._sent

    @cached_property
    def _sent(self) -> float:
        """A part over the network."""
        pair = self.machine.crossing(self.plan.mesh.group("pp")[:2])
        known, group = self.machine.calibration, self.machine.group
        return collective_time("send_recv", self._passed / self.plan.mesh.tp, pair, calibration=known, group=group)

    @cached_property
    def _got(self) -> float:
        """All parts over the node's links, and out of the buffer."""
        if self.plan.mesh.tp == 1:
            return 0.0
        tensor = self.machine.crossing(self.plan.mesh.group("tp"))
        known, group = self.machine.calibration, self.machine.group
        gathered = collective_time("all_gather", self._passed, tensor, calibration=known, group=group)
        return gathered + stream_time(2.0 * self._passed, self.machine.device)

    @cached_property
    def _passed(self) -> float:
        """Bytes of the value that goes from stage to stage."""
        block = self.plan.graph.blocks[self.plan.graph.calls[1].block]
        return float(self.plan.capacity * width_of(block) * SIZES[self.plan.precision.compute])

    def _reduced(self, place: int) -> float:
        """All gradients of a rank, a buffer a stage."""
        return sum(self.calls[i].reduce for i in self.lines[place].calls)

    def _parts(self, step: StepTime) -> Iterator[tuple[str, float]]:
        """Messages are told apart from the bubble."""
        for name, seconds in super()._parts(step):
            told = self._told if name == "bubble" else 0.0
            if told:
                yield "stage communication", told
            yield name, seconds - told

    @property
    def _told(self) -> float:
        """Seconds of messages of a step on the busiest rank."""
        pp, stages = self.plan.mesh.pp, len(self.stages)
        busiest = max(range(pp), key=lambda place: sum(self.calls[i].path for i in self.lines[place].calls))
        each = (sum(self._messages(number, stages)) for number in range(busiest, stages, pp))
        return self.plan.micro_steps * sum(each)


def megatron(plain: Priced) -> Megatron:
    """A plan as Megatron-LM ran it."""
    return Megatron(plain.plan, plain.machine, plain.laid, kernel_by_kernel(plain), pools=plain.pools)


def kernel_by_kernel(plain: Priced) -> Mapping[str, BlockWork]:
    """The work of a plan as Megatron-LM's model did it: kernels of layers and of the loss that nothing fused."""
    seconds, found = seconds_of(plain.plan, plain.machine), {}
    for name, work in plain.work.items():
        changed = {}
        block = plain.laid.blocks[name].block
        for node, _, cut in plain.laid.blocks[name].rules:
            share = 1 if cut == WHOLE else plain.plan.mesh.tp
            if op_of(node).kind == "loss":
                changed["loss"] = _loss(node, share, block, seconds)
            if op_of(node).kind == "attention":
                changed[ELEMENTWISE] = _layer(block, plain.plan.mesh.tp, seconds)
        found[name] = replace(work, compute={**work.compute, **changed})
    return found


def _layer(block: Block, ranks: int, seconds: Seconds) -> Times:
    """What a layer does between its products and attention."""
    device, own = seconds.device, seconds.load.tokens * width_of(block)
    found = []
    for which in (0, 1):
        norms = sum(norm_time(n * own, device, backward=which == 1) for n in NORMS[which])
        whole = sum(stream_time(n * own, device) for n in WHOLE_WIDTH[which])
        part = sum(stream_time(n * own / ranks, device) for n in OWN_WIDTH[which])
        found.append(norms + whole + part)
    return Times(*found)


def _loss(node: Node, share: int, block: Block, seconds: Seconds) -> Times:
    """Three products, and the kernels over the logits between them."""
    device = seconds.device
    x, weight = (block.value(ref) for ref in node.refs()[:2])
    matrix = prod(weight.shape) / share
    logits = seconds.load.tokens * matrix / x.shape[-1]
    moved = seconds.size(x) + SIZES[x.dtype] * (matrix + logits)
    one = matmul_time(2.0 * seconds.load.tokens * matrix, moved, RATES[x.dtype], device)
    forward, backward = (sum(stream_time(n * logits, device) for n in kernels) for kernels in LOGITS)
    return Times(one + forward, 2 * one + backward)


def width_of(block: Block) -> int:
    """The width of the value that goes from block to block."""
    return int(next(value.shape[-1] for value in block.inputs.values() if value.grad))
