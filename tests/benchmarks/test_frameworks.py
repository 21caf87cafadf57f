"""What other frameworks did otherwise, priced: waits where nothing overlaps, a collective for each parameter."""

from __future__ import annotations

from dataclasses import replace

import pytest
from frameworks import PERSISTENT, DeepSpeed, framed
from published import Run, machine_of, pinned, runs

from fourfold.ir.rule import WHOLE
from fourfold.passes.costs import Costs
from fourfold.passes.price import Priced


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


def test_megatron_sends_a_part_and_gathers_it_inside_the_node() -> None:
    plain, theirs = both(run_of("V0005"))
    assert {
        plain.plan.layouts["layers.*"].cuts.get(f"{name}_norm", WHOLE) for name in ("attention", "feed_forward")
    } == {WHOLE}
    assert theirs.send < plain.send
    assert theirs.blocking and not plain.blocking


def test_a_run_of_no_named_framework_has_our_price() -> None:
    plain, theirs = both(run_of("V0011", framework=""))
    assert theirs.step == plain.step and theirs.estimate() == plain.estimate()
