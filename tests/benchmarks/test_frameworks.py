"""What other frameworks did otherwise, priced: waits where nothing overlaps, kernels and collectives one by one."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from as_megatron import Megatron
from frameworks import PERSISTENT, DeepSpeed, OneByOne, framed
from published import Run, machine_of, pinned, runs

from fourfold.costmodel.collective import collective_time
from fourfold.costmodel.kernel import attention_flops, attention_time, matmul_time, norm_time, stream_time
from fourfold.ir.ops import rule_for
from fourfold.ir.rule import WHOLE
from fourfold.passes.price.costs import Costs
from fourfold.passes.price.load import load_of
from fourfold.passes.price.pipelined import stage_costs
from fourfold.passes.price.price import Priced


def run_of(name: str, **changes: object) -> Run:
    """A published run of two layers a stage, with changes."""
    run = next(run for run in runs() if run.id == name)
    return replace(run, layers=2 * run.pp * run.virtual, **changes)  # type: ignore[arg-type]


def both(run: Run) -> tuple[Priced, Priced]:
    """The run's plan with our price, and with that of its framework."""
    machine = machine_of(run)
    plain = Costs(machine).priced(pinned(run, machine))
    return plain, framed(plain, run.framework)


@pytest.fixture(scope="module")
def zero_3() -> tuple[Priced, Priced]:
    return both(run_of("V0011"))


def test_nothing_of_zero_3_overlaps(zero_3: tuple[Priced, Priced]) -> None:
    """The step is all computation and all collectives, one after the other."""
    _, theirs = zero_3
    first, *_, last = theirs.calls
    gathers = sum(2 * call.gather for call in theirs.calls) - last.gather
    alone = sum(call.path for call in theirs.calls) + gathers + sum(call.reduce for call in theirs.calls)
    copied = sum(call.copies.of_step(1, again=call is not last) - call.copies.each for call in theirs.calls)
    assert theirs.step.seconds == pytest.approx(alone + copied + theirs.optimizer + theirs.talk)
    assert first.gather > 0


def test_zero_3_moves_each_parameter_alone(zero_3: tuple[Priced, Priced]) -> None:
    """Fused weights are one parameter, norms and biases are never sharded; all but the last are gathered thrice."""
    plain, theirs = zero_3
    assert isinstance(theirs, DeepSpeed)
    width = plain.plan.graph.blocks["layers.*"].parameters["attention_norm.weight"].shape[0]
    found = theirs._parameters("layers.*")
    assert found == (3 * width**2, width**2, 4 * width**2, 4 * width**2)
    assert all(elements >= PERSISTENT for elements in found)
    gather = [theirs._collective("all_gather", 2.0 * n) + theirs._pieces(2.0 * n, 4) for n in found]
    assert theirs.calls[1].gather == pytest.approx(1.5 * sum(gather[:3]) + gather[3])


def test_pieces_cost_more_on_more_ranks() -> None:
    few, many = (both(run_of(name, sequences=1536))[1] for name in ("V0011", "V0013"))
    assert many.calls[1].gather > 2.0 * few.calls[1].gather


@pytest.fixture(scope="module")
def pipeline() -> tuple[Priced, Priced]:
    """Two stages on each of four ranks of the line."""
    return both(run_of("V0006", virtual=2))


def test_megatron_waits_for_messages_at_both_ends(pipeline: tuple[Priced, Priced]) -> None:
    """A stage inside gets and sends one each way; a part over the network, then all parts inside the node, copied."""
    plain, theirs = pipeline
    assert isinstance(theirs, Megatron) and theirs.send == 0.0
    whole, machine = 2.0 * theirs.plan.capacity * 10240, theirs.machine
    pair = machine.crossing(theirs.plan.mesh.group("pp")[:2])
    sent = collective_time("send_recv", whole / 8, pair)
    got = collective_time("all_gather", whole, machine.crossing(theirs.plan.mesh.group("tp")))
    got += stream_time(2.0 * whole, machine.device)
    silent = stage_costs(theirs.plan, theirs.calls, theirs.overlap)
    waited = [(a.forward - b.forward, a.backward - b.backward) for a, b in zip(theirs.stages, silent, strict=True)]
    assert waited[0] == pytest.approx((sent, got)) and waited[-1] == pytest.approx((got, sent))
    assert all(one == pytest.approx((got + sent, got + sent)) for one in waited[1:-1])
    assert sent < plain.send and theirs.plan.mesh.pp == 4 and len(waited) == 8


def test_megatron_reduces_after_the_last_backward_of_a_rank(pipeline: tuple[Priced, Priced]) -> None:
    """The first of a rank's stages ends last; it waits for the gradients of both."""
    _, theirs = pipeline
    copied = [sum(c.copies.once for c in theirs.calls[i:j]) for i, j in pairwise((0, *theirs.plan.bounds, None))]
    for number, stage in enumerate(theirs.stages):
        own = theirs.lines[number].calls if number < 4 else ()
        reduced = sum(theirs.calls[i].reduce for i in own)
        assert stage.exposed == pytest.approx(reduced) and (reduced > 0) == (number < 4)
        assert stage.last - stage.backward + stage.first - stage.forward == pytest.approx(copied[number] + reduced)


def test_parts_with_messages_sum_to_the_step(pipeline: tuple[Priced, Priced]) -> None:
    _, theirs = pipeline
    parts = dict(theirs.estimate().parts)
    assert sum(parts.values()) == pytest.approx(theirs.step.seconds)
    assert parts["stage communication"] > 0 and parts["bubble"] > 0


def test_without_a_pipeline_gradients_are_reduced_beside_the_last_backward() -> None:
    _, theirs = both(run_of("V0003"))
    reduced = sum(call.reduce for call in theirs.calls)
    alone = theirs.step.seconds - theirs.optimizer - sum(call.path for call in theirs.calls)
    assert not theirs.blocking and alone < reduced / 2


def test_megatron_norms_whole_and_elementwise_kernels_one_by_one() -> None:
    """Whole widths on each of two tensor ranks, their own widths on one: read off the source's kernels."""
    plain, theirs = both(run_of("V0002"))
    layout = plain.plan.layouts["layers.*"]
    assert {layout.cuts.get(f"{name}_norm", WHOLE) for name in ("attention", "feed_forward")} == {WHOLE}
    one, device = float(plain.plan.capacity * 3072), plain.machine.device
    norm = 2 * norm_time(4 * one, device)
    own = sum(stream_time(n * one / 2, device) for n in (12, 4, 16))
    found = theirs.work["layers.*"].compute["elementwise"]
    assert found.forward == pytest.approx(norm + 2 * stream_time(7 * one, device) + own)
    assert found.backward > found.forward > plain.work["layers.*"].compute["elementwise"].forward


def test_the_loss_is_three_products_and_kernels_over_logits() -> None:
    plain, theirs = both(run_of("V0001"))
    (name,) = (name for name, work in plain.work.items() if work.compute["loss"].forward)
    tokens, device = plain.plan.capacity, plain.machine.device
    logits = float(tokens * 51200)
    moved = 2.0 * (tokens * 2304 + 51200 * 2304 + logits)
    product = matmul_time(2.0 * logits * 2304, moved, "fp16", device)
    found = theirs.work[name].compute["loss"]
    assert found.forward == pytest.approx(product + sum(stream_time(n * logits, device) for n in (6, 4, 8, 8, 4, 8)))
    assert found.backward == pytest.approx(2 * product + sum(stream_time(n * logits, device) for n in (8, 6)))


def test_unfused_attention_is_its_kernels_one_by_one() -> None:
    """Products over the whole square, scores through memory between them."""
    run = run_of("V0001")
    device, head, square = machine_of(run, 0.8).device, 96, 2048.0**2
    product = matmul_time(2 * head * square, 2 * square, "fp16", device) - device.matmul["fp16"].overhead
    reached = device.stream.memory * device.bandwidth
    flops = attention_flops(1, head, square / 2)
    for backward, products, passes in ((False, 2, 4.0), (True, 4, 4.5)):
        found = attention_time(flops, 2048, backward=backward, dtype="fp16", device=device, head_dim=head)
        fit = device.attention_backward if backward else device.attention_forward
        assert found - fit.overhead == pytest.approx(products * product + passes * 2 * square / reached)


def test_eager_kernels_are_launched_one_by_one() -> None:
    """Of torchtitan's two runs of one layout, the one that was not compiled takes longer, by what is not fused."""
    plain, theirs = both(run_of("V1155"))
    own, found = plain.work["layers.*"].compute, theirs.work["layers.*"].compute
    assert found["elementwise"].forward > 2 * own["elementwise"].forward
    assert found["attention"] == own["attention"]
    layer = plain.plan.graph.blocks["layers.*"]
    add = next(node for node in reversed(layer.nodes) if node.op.startswith("add"))
    size, device = 2.0 * plain.plan.capacity * 4096, plain.machine.device
    priced = OneByOne(plain.plan.graph, plain.machine, plain.machine.crossing((0,)), load_of(plain.plan))
    one = priced.op(add, rule_for(add, layer.values(), WHOLE), WHOLE, layer)
    assert one.forward == pytest.approx(device.launch + stream_time(3 * size, device))
    assert theirs.step.seconds > plain.step.seconds


def test_a_run_of_no_named_framework_has_our_price() -> None:
    plain, theirs = both(run_of("V0011", framework=""))
    assert theirs.step == plain.step and theirs.estimate() == plain.estimate()
